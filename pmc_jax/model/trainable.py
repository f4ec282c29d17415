"""What training changes: all weights, some of them, or an adapter beside them.

The weights of a run are two trees. `trained` is what is differentiated, what the optimizer has
moments of and what checkpoints hold; `base` is never changed, copied or differentiated. `joined`
makes of both what `forward` reads. If all weights are trained (`Trainable` is None), `trained` is
the weights and there is no base.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from pmc_jax.errors import UserError
from pmc_jax.model.config import ModelConfig
from pmc_jax.model.products import LowRank, Quantised, is_low_rank, quantised
from pmc_jax.model.selection import Selection, as_list, select
from pmc_jax.model.sharding import constrain, constrain_params
from pmc_jax.model.specs import Params, Spec, param_specs
from pmc_jax.model.stacks import layer_stacks
from pmc_jax.settings import bounded, one_of, path_to

INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""The weights that can have an adapter, and how many of their axes are inputs."""


@dataclasses.dataclass(frozen=True)
class LoRA:
    """A low-rank adapter (LoRA, arXiv 2106.09685): W + s · AB, of which A and B are trained.

    The model's own weights do not change. As in PEFT, A starts uniformly random with variance
    1/(3 · inputs), and B starts as 0.

    Attributes:
        rank: r, the number of columns of A.
        alpha: s is alpha / rank.
        targets: the weights that get an adapter: a pattern or a list of patterns, such as
            [q,v], attention, mlp, all, or layers.-4:.mlp for the last four layers.
        rslora: s is alpha / √rank (arXiv 2312.03732).
        merge: add the adapter to the weights before every round of sampling; false: apply it in
            every product, which takes less memory and more time.
        base_dtype: dtype of the weights beside the adapter: "auto": the dtype of matrix products,
            if it represents them exactly; "int8": the matrices of the layers are quantised, with
            one scale for each output channel.
        path: an adapter in PEFT's format to start from, with this rank, alpha and targets.
    """

    rank: int = bounded(8, least=1, most=2**14)
    alpha: float = bounded(16.0, above=0)
    targets: Any = "all"
    rslora: bool = False
    merge: bool = True
    base_dtype: str = one_of("auto", "auto", "int8")
    path: str | None = path_to(None)

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class Trainable:
    """A part of the weights, or an adapter for it.

    A tree of trained weights has those outside the layers by name, and below "layers" those of
    each stack of the selection, by the number of its first layer. An adapter has `a` and `b` in
    place of a weight.

    Attributes:
        cfg: the model's shape.
        selection: the weights that are trained, or that have an adapter.
        adapter: the adapter's settings; None: the weights themselves are trained.
    """

    cfg: ModelConfig
    selection: Selection
    adapter: LoRA | None = None

    @property
    def specs(self) -> Params:
        """The table of the trained weights."""
        table = param_specs(self.cfg)
        found: Params = {name: table[name] for name in self.selection.outside}
        for stack in self.selection.stacks:
            own = {name: self._spec(name, table["layers"][name], stack.end - stack.first)
                   for name in stack.names}  # fmt: skip
            if own:
                found.setdefault("layers", {})[stack.key] = own
        return found

    @property
    def is_quantised(self) -> bool:
        """Whether the base is quantised."""
        return self.adapter is not None and self.adapter.base_dtype == "int8"

    @property
    def base_specs(self) -> Params:
        """The table of the base; a quantised weight has one spec for each of its parts."""

        def one(name: str, spec: Spec, layers: int) -> Any:
            own = dataclasses.replace(spec, shape=(layers, *spec.shape[1:]))
            if not self.is_quantised or name not in INPUTS:
                return own
            ones, outputs = (1,) * INPUTS[name], own.shape[1 + INPUTS[name] :]
            return Quantised(own, dataclasses.replace(own, shape=(layers, *ones, *outputs)))

        table = param_specs(self.cfg)
        stacks = []
        for stack in self.selection.stacks:
            layers = stack.end - stack.first
            stacks.append(
                {
                    name: one(name, spec, layers)
                    for name, spec in table["layers"].items()
                    if self.adapter is not None or name not in stack.names
                }
            )
        trained = () if self.adapter is not None else self.selection.outside
        rest = {name: spec for name, spec in table.items() if name not in (*trained, "layers")}
        return {**rest, "layers": tuple(stacks) if len(stacks) > 1 else stacks[0]}

    def _spec(self, name: str, spec: Spec, layers: int) -> Any:
        shape = (layers, *spec.shape[1:])
        if self.adapter is None:
            return dataclasses.replace(spec, shape=shape)
        ends, rank = 1 + INPUTS[name], self.adapter.rank
        return {
            "a": Spec((*shape[:ends], rank), (*spec.axes[:ends], "rank")),
            "b": Spec((layers, rank, *shape[ends:]), ("layers", "rank", *spec.axes[ends:])),
        }

    def split(self, params: Params, dtype: DTypeLike, *, donate: bool) -> tuple[Params, Params]:
        """Trained weights and base. With an adapter nothing of `params` is trained yet: {}.

        The base's matrices are kept in `dtype`, what they are multiplied in, if this loses
        nothing, or quantised if the adapter says so. Base and `params` share arrays; trained
        weights are copies unless `donate`, which deletes what is no longer needed.
        """
        table, bounds = param_specs(self.cfg), self.selection.stacks
        trained: Params = {}
        base: Params = {name: leaf for name, leaf in params.items() if name != "layers"}
        if self.adapter is None:
            for name in self.selection.outside:
                leaf = base.pop(name)
                trained[name] = leaf if donate else jnp.copy(leaf)
        stacks: list[Params] = [{} for _ in bounds]
        for name, leaf in params["layers"].items():
            for stack, own in zip(bounds, stacks, strict=True):
                whole = len(bounds) == 1
                part = leaf if whole else leaf[stack.first : stack.end]
                if self.adapter is None and name in stack.names:
                    layers = trained.setdefault("layers", {}).setdefault(stack.key, {})
                    layers[name] = jnp.copy(part) if whole and not donate else part
                else:
                    own[name] = part
            if donate and len(bounds) > 1:
                jax.block_until_ready((trained, stacks))
                leaf.delete()
        base["layers"] = tuple(stacks) if len(stacks) > 1 else stacks[0]
        if self.adapter is not None:
            base = narrowed(base, table, dtype, quantise=self.is_quantised, donate=donate)
        return trained, base

    def initial(self, key: PRNGKeyArray, dtype: DTypeLike) -> Params:
        """An adapter with which the model is as without one: A is random, B is 0.

        An adapter of some layers is part of the one of all layers.
        """
        assert self.adapter is not None
        names = sorted(INPUTS)

        @jax.jit
        def make() -> Params:
            found: Params = {}
            for stack in self.selection.stacks:
                for name in stack.names:
                    specs = self.specs["layers"][stack.key][name]
                    own, shape = jax.random.fold_in(key, names.index(name)), specs["a"].shape
                    bound = 1 / math.sqrt(math.prod(shape[1:-1]))
                    keys = jax.vmap(partial(jax.random.fold_in, own))(
                        jnp.arange(stack.first, stack.end)
                    )
                    draw = partial(
                        jax.random.uniform,
                        shape=shape[1:],
                        dtype=dtype,
                        minval=-bound,
                        maxval=bound,
                    )
                    found.setdefault(stack.key, {})[name] = {
                        "a": jax.vmap(draw)(keys), "b": jnp.zeros(specs["b"].shape, dtype),
                    }  # fmt: skip
            return constrain_params({"layers": found}, self.specs)

        return make()

    def joined(self, trained: Params, base: Params) -> Params:
        """The weights to compute with; no array is copied. Without `trained`, the base's."""
        stacks = []
        for stack, own in zip(self.selection.stacks, layer_stacks(base), strict=True):
            changed = trained.get("layers", {}).get(stack.key, {})
            stacks.append({**own, **{n: self._weight(own.get(n), w) for n, w in changed.items()}})
        outside = {name: leaf for name, leaf in trained.items() if name != "layers"}
        layers = tuple(stacks) if len(stacks) > 1 else stacks[0]
        return {**base, **outside, "layers": layers}

    def _weight(self, base: Any, own: Any) -> Any:
        if self.adapter is None:
            return own
        return LowRank(base, own["a"], own["b"], self.adapter.scale, self.adapter.merge)

    def whole(self, trained: Params, base: Params, dtypes: Params, *, donate: bool) -> Params:
        """All weights in one stack, adapters merged and quantised weights dequantised.

        They share no array with the base, unless `donate`, which deletes what it can of it.
        `dtypes` has the dtype of each weight.
        """
        table = param_specs(self.cfg)
        found = self.joined(trained, base)
        stacks = layer_stacks(found)

        def one(spec: Spec, parts: tuple[Any, ...], dtype: DTypeLike) -> Array:
            first = parts[0]
            plain = len(parts) == 1 and isinstance(first, jax.Array)
            if donate and plain and first.dtype == jnp.dtype(dtype):
                return first
            own = _whole(parts, spec, dtype)
            if donate:
                jax.block_until_ready(own)
                for leaf in jax.tree.leaves([p.weight if is_low_rank(p) else p for p in parts]):
                    leaf.delete()
            return own

        rest = {
            name: one(table[name], (leaf,), dtypes[name])
            for name, leaf in found.items()
            if name != "layers"
        }
        layers = {
            name: one(spec, tuple(stack[name] for stack in stacks), dtypes["layers"][name])
            for name, spec in table["layers"].items()
        }
        return {**rest, "layers": layers}

    def mask(self, trained: Params | None) -> Params | None:
        """`Method.trained_weights` for the tree of trained weights; None: all of it.

        Raises:
            UserError: if the method trains none of them.
        """
        if trained is None:
            return None

        def of_stack(mask: Any, first: int, end: int, like: Any) -> Any:
            mask = np.asarray(mask)
            if mask.ndim == 0:
                return jax.tree.map(lambda _: mask, like)
            if mask.size != len(mask):
                raise UserError(
                    "this method trains parts of a weight; expected training.only=null and no "
                    "adapter"
                )
            layers = mask.reshape(-1)[first:end]
            return jax.tree.map(lambda spec: layers.reshape(-1, *[1] * (len(spec.shape) - 1)), like)

        found: Params = {name: trained[name] for name in self.selection.outside}
        for stack in self.selection.stacks:
            for name in stack.names:
                own = self.specs["layers"][stack.key][name]
                layers = found.setdefault("layers", {}).setdefault(stack.key, {})
                layers[name] = of_stack(trained["layers"][name], stack.first, stack.end, own)
        if not any(np.any(leaf) for leaf in jax.tree.leaves(found)):
            names = [n for n, m in trained["layers"].items() if np.any(m)]
            setting = "training.only" if self.adapter is None else "adapter.targets"
            raise UserError(f"{setting}: selects none of the weights that the method trains, "
                            f"{', '.join(names)} in some layers")  # fmt: skip
        return found


@partial(jax.jit, static_argnames=("spec", "dtype"))
def _whole(parts: tuple[Any, ...], spec: Spec, dtype: DTypeLike) -> Array:
    def layer(part: Any) -> Array:
        wide = jnp.promote_types(dtype, part.a.dtype)
        return part.sum(wide).astype(dtype)

    # An adapter is merged layer by layer, which takes no memory for the change of all layers.
    own = [jax.lax.map(layer, p) if is_low_rank(p) else p.astype(dtype) for p in parts]
    # A copy, so that the result shares no memory with an argument.
    return jnp.copy(constrain(own[0] if len(own) == 1 else jnp.concatenate(own), *spec.axes))


def dtypes_of(params: Params) -> Params:
    """The dtype of each weight."""
    return jax.tree.map(lambda leaf: leaf.dtype, params)


@partial(jax.jit, static_argnames=("spec", "inputs"))
def _quantised(leaf: Array, spec: Spec, inputs: int) -> Quantised:
    found = quantised(leaf, tuple(range(1, 1 + inputs)))
    return Quantised(constrain(found.values, *spec.axes), constrain(found.scales, *spec.axes))


@partial(jax.jit, static_argnames="dtype")
def _cast(leaf: Array, dtype: DTypeLike) -> tuple[Array, Array]:
    """A leaf in `dtype`, and whether that is exact."""
    cast = leaf.astype(dtype)
    return cast, jnp.all(cast.astype(leaf.dtype) == leaf)


def narrowed(
    base: Params, specs: Params, dtype: DTypeLike, *, quantise: bool, donate: bool
) -> Params:
    """The matrices of a base in `dtype` where it holds them exactly; norms in float32 at least.

    Weights of a model whose files are in bfloat16 take half the memory then. Every product
    casts them to `dtype` anyway, so that no result changes. With `quantise`, the matrices of the
    layers are quantised instead.
    """

    def one(leaf: Array, spec: Spec) -> Array:
        if spec.init != "normal":
            wide = jnp.promote_types(leaf.dtype, jnp.float32)
            return leaf if leaf.dtype == wide else leaf.astype(wide)
        if jnp.dtype(dtype).itemsize >= leaf.dtype.itemsize:
            return leaf
        cast, exact = _cast(leaf, dtype)
        if not exact:
            return leaf
        if donate:
            leaf.delete()
        return cast

    def of_layers(name: str, leaf: Array) -> Array | Quantised:
        spec = specs["layers"][name]
        if not quantise or name not in INPUTS:
            return one(leaf, spec)
        found = _quantised(leaf, spec, INPUTS[name])
        if donate:
            jax.block_until_ready(found)
            leaf.delete()
        return found

    def stack_of(stack: Params) -> Params:
        return {name: of_layers(name, leaf) for name, leaf in stack.items()}

    layers = base["layers"]
    rest = {name: one(leaf, specs[name]) for name, leaf in base.items() if name != "layers"}
    narrow = tuple(map(stack_of, layers)) if isinstance(layers, tuple) else stack_of(layers)
    return {**rest, "layers": narrow}


def trainable(cfg: ModelConfig, only: Any = None, adapter: LoRA | None = None) -> Trainable | None:
    """What `training.only` and `adapter` say is trained; None: all weights.

    Raises:
        UserError: for a pattern that matches nothing, or if both are given.
    """
    if adapter is not None and only is not None:
        raise UserError(
            "training.only and adapter: expected one of them; adapter.targets chooses the weights "
            "that get an adapter"
        )
    table = param_specs(cfg)
    if adapter is not None:
        names = [name for name in INPUTS if name in table["layers"]]
        for pattern in as_list(adapter.targets):
            if pattern in ("embed", "embed_tokens", "lm_head"):
                raise UserError(
                    f"adapter.targets={pattern}: embeddings and the output matrix cannot have an "
                    f"adapter; expected {', '.join(names)}, or a pattern for some of them"
                )
        chosen = select(adapter.targets, cfg, names, setting="adapter.targets")
        hashable = dataclasses.replace(adapter, targets=tuple(as_list(adapter.targets)))
        return Trainable(cfg, chosen, hashable)
    if only is None:
        return None
    outside = [name for name in table if name != "layers"]
    return Trainable(cfg, select(only, cfg, table["layers"], outside, setting="training.only"))


def trained_specs(cfg: ModelConfig, part: Trainable | None) -> Params:
    """The table of what is trained."""
    return param_specs(cfg) if part is None else part.specs


def joined_weights(part: Trainable | None, trained: Params, frozen: Mapping[str, Any]) -> Params:
    """The weights to compute with: `trained`, and the base in `frozen`."""
    return trained if part is None else part.joined(trained, frozen["base"])
