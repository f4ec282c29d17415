"""A language model as one object: weights, configuration, prompt template and dtype."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from convert.adapters import adapter_at, read_adapter, write_adapter
from convert.directory import compute_dtype, position_limit, read_config
from convert.export import as_stored, export_checkpoint, weights_dtypes
from convert.families import family_of
from convert.load import (
    check_checkpoint,
    eos_token_ids,
    load_checkpoint,
    load_config,
    resolve,
    rows_of,
)
from pmc_jax.assets import WORLD_MODEL
from pmc_jax.data.checks import too_long
from pmc_jax.data.encode import check_tokens
from pmc_jax.data.prompt_config import PromptConfig, prompt_content, read_prompt
from pmc_jax.data.prompts import PromptTemplate, check_texts, make_template
from pmc_jax.data.tokenizer import load_tokenizer, muted_panics
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import NotFinite, UserError
from pmc_jax.model import ModelConfig, choose_mesh, decoding_params, on_mesh, param_count
from pmc_jax.model.specs import Params, count_of
from pmc_jax.model.trainable import LoRA, Trainable, dtypes_of, trainable
from pmc_jax.runtime.progress import warn
from pmc_jax.settings import AUTO, automatic, bounded, check, one_of, path_to, random_seed
from pmc_jax.signatures import checked

Leaves = tuple[tuple[str, ...], ...]
"""Paths of leaves of the parameters."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Which model, and how to compute with it.

    Attributes:
        path: a Hugging Face directory, a native checkpoint, a hub id, or "bundled".
        dtype: dtype of matrix products; weights are at least float32. "auto": what the model
            was trained and evaluated in if a run exported it, else float32.
        remat: what the backward pass recomputes: "none": nothing; "dots": all but matrix
            products; "full": everything.
        architecture: a config.json, for plans without the model's files.
        check_weights: refuse a model with a weight that is NaN or infinite.
    """

    path: str = path_to("bundled")
    dtype: str = one_of("auto", "auto", "float32", "bfloat16", "float64")
    remat: str = one_of("none", "none", "dots", "full")
    architecture: dict[str, Any] | None = None
    check_weights: bool = True


@dataclasses.dataclass(frozen=True)
class Answering:
    """The arguments of `LanguageModel.generate`, with their bounds."""

    samples: int = bounded(1, least=1, most=2**16)
    temperature: float = bounded(0.0, least=0)
    top_k: int = bounded(0, least=0)
    top_p: float = bounded(1.0, above=0, most=1)
    max_new_tokens: int = bounded(128, least=1)
    seed: int = random_seed()
    decode_batch: int | str = automatic()


@dataclasses.dataclass(frozen=True, repr=False)
class LanguageModel:
    """A causal language model and everything needed to ask it, train it and save it.

    Attributes:
        params: the weights, a nested dict of arrays; float32 for training (float64 if `dtype`
            is), in the dtypes of the files, or what `for_decoding` makes of them.
        config: the decoder's shape.
        template: turns questions into tokens and tokens into answers.
        directory: the checkpoint that it was loaded from, whose tokenizer and configuration
            files an export copies.
        dtype: what matrix products are computed in.
        remat: what the backward pass recomputes: "none", "dots" or "full".
        mesh: the devices that hold the weights; None: one device.
    """

    params: Params
    config: ModelConfig
    template: PromptTemplate
    directory: Path
    dtype: str = "float32"
    remat: str = "none"
    mesh: Mesh | None = None

    def __repr__(self) -> str:
        count = f"{param_count(self.config):,} parameters"
        return f"LanguageModel({str(self.directory)!r}, {count}, dtype={self.dtype!r})"

    @property
    def weights_dtype(self) -> str:
        """The dtype that weights are trained and exported in: at least float32."""
        return weights_dtype(self.dtype)

    @property
    def is_narrow(self) -> bool:
        """Whether some weights are too narrow to be trained, as their files are."""
        wide = jnp.dtype(self.weights_dtype).itemsize
        return any(leaf.dtype.itemsize < wide for leaf in jax.tree.leaves(self.params))

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model is made for, in tokens; None if it does not say."""
        return position_limit(self.directory)

    def long_prompts(self, questions: Sequence[str], prompts: Sequence[Sequence[int]]) -> list[str]:
        """Warn of questions whose prompts are longer than the model's positions."""
        lengths: dict[str, int] = {}
        for question, prompt in zip(questions, prompts, strict=True):
            name = short(question)
            lengths[name] = max(len(prompt), lengths.get(name, 0))
        return too_long(lengths, self.positions)

    @property
    def tensor_leaves(self) -> tuple[Leaves, ...]:
        """For each kind of tensor in the checkpoint, the leaves of the parameters it becomes."""
        _, family, config = read_config(self.directory)
        return tuple(row.leaves for row, _ in rows_of(family, config))

    def with_params(self, params: Params) -> "LanguageModel":
        """The same model with other weights."""
        return dataclasses.replace(self, params=params)

    def for_decoding(self, *, copied: bool = True) -> "LanguageModel":
        """The same model with its weights cast and laid out for decoding.

        They take memory of their own, and calling it again changes nothing. If not `copied`,
        weights in `dtype` take no more memory on one device, and decoding more time.
        """
        if isinstance(self.params["layers"], tuple):
            return self
        found = decoding_params(self.params, self.config, self.dtype, copied=copied)
        return self.with_params(found)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts to mypy
        self, questions: str, *, samples: int = ..., temperature: float = ..., top_k: int = ...,
        top_p: float = ..., max_new_tokens: int = ..., prefix: str | None = ...,
        system: str | None = ..., seed: int = ..., decode_batch: int | str = ...,
    ) -> list[str]: ...  # fmt: skip

    @overload
    def generate(
        self, questions: Sequence[str], *, samples: int = ..., temperature: float = ...,
        top_k: int = ..., top_p: float = ..., max_new_tokens: int = ..., prefix: str | None = ...,
        system: str | None = ..., seed: int = ..., decode_batch: int | str = ...,
    ) -> list[list[str]]: ...  # fmt: skip

    @checked()
    def generate(
        self,
        questions: str | Sequence[str],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_new_tokens: int = 128,
        prefix: str | None = None,
        system: str | None = None,
        seed: int = 0,
        decode_batch: int | str = AUTO,
    ) -> list[str] | list[list[str]]:
        """Answer questions: `samples` texts for each. A single question has a single list.

        Args:
            questions: a list of questions, or one question as a text.
            samples: the number of answers to each question.
            temperature: 0 decodes greedily; otherwise temperature, then `top_k`, then `top_p`
                apply (0 and 1 switch the filters off).
            prefix: a text that every response is made to begin with; the answer is what follows.
            system: a system prompt in place of the template's own.
            decode_batch: the most responses decoded at a time; "auto": as many as fit into memory.
                No answer depends on it, except by rounding.

        Raises:
            NotFinite: if the logits for a question are NaN or infinite.
            UserError: for a value out of bounds, or if the tokenizer gives a token that the model
                does not have.
        """
        check(Answering(samples, temperature, top_k, top_p, max_new_tokens, seed, decode_batch))
        if isinstance(questions, str):
            return self.generate(
                [questions], samples=samples, temperature=temperature, top_k=top_k, top_p=top_p,
                max_new_tokens=max_new_tokens, prefix=prefix, system=system, seed=seed,
                decode_batch=decode_batch,
            )[0]  # fmt: skip
        template = self.template
        forced = template.encode_prefix(prefix) if prefix else []
        prompts = [template.encode_prompt(question, system) + forced for question in questions]
        check_tokens({0}.union(*prompts), self.config.vocab_size)
        warn(self.long_prompts(questions, prompts))
        with on_mesh(self.mesh), self.naming(questions):
            responses = generate(
                self.for_decoding().params,
                prompts,
                cfg=self.config,
                sampling=Sampling(temperature, top_k, top_p, stop_ids=template.stop_ids),
                key=jax.random.key(seed),
                limits=[max_new_tokens] * len(prompts),
                samples=samples,
                decode_batch=decode_batch,
                dtype=self.dtype,
            )
        return [[template.decode(tokens) for tokens in own] for own in responses]

    @contextmanager
    def naming(self, questions: Sequence[str]) -> Iterator[None]:
        """Name this model and the question where its logits are not finite.

        Raises:
            NotFinite: in place of the one that the block raises.
        """
        try:
            yield
        except NotFinite as error:
            known = error.index < len(questions)
            what = f"the question {short(questions[error.index])}" if known else "a prompt"
            raise self.not_finite(error.index, what) from None

    def not_finite(self, index: int, what: str) -> NotFinite:
        """The error for logits that are NaN or infinite for a prompt, which `what` describes."""
        return NotFinite(
            index,
            f"{self.directory}: the model's logits are not finite (NaN or infinite) for {what}, "
            f"computed in {self.dtype}; expected weights that do not overflow",
        )

    def as_saved(self) -> "LanguageModel":
        """The same model with its weights rounded to the dtypes in which `save` writes them."""
        return self.with_params(as_stored(self.params, self.config, self.directory))

    def read_adapter(self, part: Trainable) -> Params:
        """The adapter in the directory `part.adapter.path`, laid out as `part.specs` says.

        Raises:
            UserError: if it does not go together with the model or the settings.
        """
        return read_adapter(part, self.directory, self.weights_dtype)

    def with_adapter(self, path: str | Path) -> "LanguageModel":
        """The same model with an adapter in PEFT's format merged into a copy of its weights.

        Raises:
            UserError: if it is the adapter of another model, damaged or not supported.
        """
        part = adapter_at(path, self.directory)
        with on_mesh(self.mesh):
            adapter = self.read_adapter(part)
            _, base = part.split(self.params, self.weights_dtype, donate=False)
            merged = part.whole(adapter, base, dtypes_of(self.params), donate=False)
        return self.with_params(merged)

    @checked()
    def save(self, directory: str | Path) -> Path:
        """Write the model as a Hugging Face directory, with its tokenizer and prompt settings.

        Raises:
            UserError: if `directory` exists, or a weight is not finite.
        """
        target = Path(directory).expanduser()
        export_checkpoint(
            self.params, self.config, self.directory, target,
            prompt=prompt_content(self.template.config), computed_in=self.dtype,
        )  # fmt: skip
        return target


@dataclasses.dataclass(frozen=True, repr=False)
class Adapter:
    """A trained adapter, apart from its model.

    Attributes:
        params: A and B, laid out as `part.specs` says.
        part: its settings, and the weights that it belongs to.
        base: the directory of its model.
    """

    params: Params
    part: Trainable
    base: Path

    def __repr__(self) -> str:
        count = f"{count_of(self.part.specs):,} parameters"
        return f"Adapter({count}, {self.part.adapter}, base={str(self.base)!r})"

    def save(self, directory: str | Path) -> Path:
        """Write the adapter in PEFT's format.

        Raises:
            UserError: if `directory` exists.
        """
        target = Path(directory).expanduser()
        write_adapter(self.params, self.part, self.base, target)
        return target


def stored_adapter(path: Path, model: LanguageModel, settings: LoRA) -> Adapter | None:
    """The adapter of a model that a run with these settings left; None if it is gone."""
    here = dataclasses.replace(settings, path=str(path))
    part = trainable(model.config, adapter=here)
    if part is None or not path.is_dir():
        return None
    with on_mesh(model.mesh):
        return Adapter(model.read_adapter(part), part, model.directory)


def expected_model(value: Any) -> str:
    """What is expected in place of a model."""
    return "a LanguageModel, which pmc.load_model returns"


def short(text: str, most: int = 80) -> str:
    """A text in quotes on one line, cut after `most` characters."""
    return repr(text if len(text) <= most else f"{text[:most]}…")


def weights_dtype(dtype: str) -> str:
    """The dtype in which weights are kept for computing in `dtype`: at least float32."""
    return "float64" if dtype == "float64" else "float32"


def resolved(source: ModelSource) -> ModelSource:
    """The same model with the dtype that "auto" stands for."""
    if source.dtype != "auto":
        return source
    found = compute_dtype(resolve(path_of(source))) if source.path else "float32"
    return dataclasses.replace(source, dtype=found)


def precision(directory: Path, dtype: str) -> str:
    """What a model's weights are stored and computed in, in words."""
    return f"weights {weights_dtypes(directory)}, computed in {dtype}"


def planned_config(source: ModelSource) -> ModelConfig:
    """The model's configuration, from its files or, without a path, from the given architecture.

    Raises:
        UserError: if neither a path nor an architecture is given.
    """
    if source.path:
        return load_config(resolve(path_of(source)))
    if source.architecture is None:
        raise UserError("model.path is missing, and the model's configuration has no architecture")
    return family_of(source.architecture).from_hf(source.architecture)


def mesh_of(source: ModelSource, setting: str) -> Mesh | None:
    """The mesh for a model by a setting (`choose_mesh`)."""
    config = load_config(resolve(path_of(source)))
    return choose_mesh(setting, config, resolved(source).dtype)


def describe(source: ModelSource, prompt: PromptConfig) -> LanguageModel:
    """A model whose weights are not read: its `params` are empty.

    Raises:
        UserError: as `load_language_model`, except for the weights.
    """
    source, directory = resolved(source), resolve(path_of(source))
    config = load_config(directory)
    ids = eos_token_ids(directory, config.vocab_size)
    template = template_of(config, directory, ids, prompt)
    return LanguageModel({}, config, template, directory, source.dtype, source.remat)


def check_weights(source: ModelSource) -> None:
    """Check that all weights of a model are finite, before anything is written.

    Raises:
        UserError: naming a tensor with a weight that is not, unless `source.check_weights` is off.
    """
    if source.check_weights:
        check_checkpoint(path_of(source), weights_dtype(resolved(source).dtype))


def load_language_model(
    source: ModelSource,
    prompt: PromptConfig,
    mesh: Mesh | None = None,
    *,
    as_stored: bool = False,
) -> LanguageModel:
    """Load a model with its weights.

    Args:
        as_stored: keep the dtypes of the files. Such weights cannot be trained, but an adapter
            beside them can.

    Raises:
        UserError: for what is missing or unsupported, or a tokenizer of another model.
    """
    described = describe(source, prompt)  # before the weights, which take longer
    found = load_checkpoint(
        path_of(source), dtype=None if as_stored else described.weights_dtype, mesh=mesh,
        check_weights=source.check_weights,
    )  # fmt: skip
    return dataclasses.replace(described, params=found.params, config=found.cfg, mesh=mesh)


def path_of(source: ModelSource) -> str | Path:
    """Where the model is; the bundled one is in the package.

    Raises:
        UserError: if the settings name no model.
    """
    if not source.path:
        raise UserError("model.path is missing; expected a model directory or a hub id")
    return WORLD_MODEL if source.path == "bundled" else source.path


def template_of(
    config: ModelConfig, directory: Path, eos_token_ids: tuple[int, ...], prompt: PromptConfig
) -> PromptTemplate:
    """The prompt template of a checkpoint, checked against the model's vocabulary.

    `prompt` overrides the model's own settings, which override the defaults.
    """
    own = read_prompt(directory)
    template = make_template(load_tokenizer(directory), prompt, eos_token_ids, own)
    try:
        with muted_panics():
            check_texts(template, config.vocab_size)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    return template
