"""One process of several; `test_processes.py` starts them.

`python tests/one_of_several.py KIND NUMBER:PORT:ID [ARGUMENT…]` does one of these:

`parts`: print as JSON what this process computes, holds and agrees on.
`fail`, `kill`: end process 1, with an error or with SIGKILL, while the others wait for it.
`train`, `evaluate`: run the command with the arguments. If the first argument is `at=ID:STEP:WHAT`,
process ID raises an error (`error`) or gets a signal after that step.
"""

import json
import os
import signal
import sys
from typing import Any

import jax
import numpy as np
import optax

from pmc_jax import train
from pmc_jax.cli import evaluate
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.model import (
    ModelConfig,
    choose_mesh,
    decoding_params,
    init_params,
    on_mesh,
    param_specs,
    to_devices,
    to_host,
)
from pmc_jax.runtime.processes import DistributedConfig, agree, end_all, from_first, join, several
from pmc_jax.training import loop
from pmc_jax.training.batch import Batch
from pmc_jax.training.optimizer import Optimizer, make_optimizer
from pmc_jax.training.step import init_state, make_train_step
from pmc_jax.unlearning.pmc import PMC

CFG = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
    num_kv_heads=2, head_dim=8,
)  # fmt: skip
ROWS = 8


def host_params() -> Any:
    """The same weights in every process."""
    with jax.default_device(jax.local_devices()[0]):
        return jax.device_get(init_params(jax.random.key(0), CFG, np.float64))


def message_of(setting: str) -> str:
    """The error message for a mesh setting; empty if there is no error."""
    try:
        choose_mesh(setting, CFG, "float64")
    except UserError as error:
        return str(error)
    return ""


def parts(refused: str = "1x1") -> dict[str, Any]:
    """Two train steps and samples in float64, the rows of this process, and the exchanges."""
    weights, rng = host_params(), np.random.default_rng(0)
    shape = (2, ROWS, 12)
    tokens, targets = rng.integers(0, CFG.vocab_size, shape), rng.random(shape) < 0.5
    with on_mesh(choose_mesh("auto", CFG, "float64")):
        params = jax.tree.map(
            lambda leaf, spec: to_devices(leaf, *spec.axes), weights, param_specs(CFG)
        )
        decoded = generate(
            decoding_params(params, CFG, "float64"), [[1, 2, 3], [4], [5, 6], [7, 8]], cfg=CFG,
            sampling=Sampling(temperature=1.0, top_k=40, stop_ids=(0,)), key=jax.random.key(1),
            limits=[6, 9, 9, 5], samples=2, dtype="float64",
        )  # fmt: skip
        numbers = np.arange(1, ROWS + 1, dtype=np.int32)[:, None]
        batch = Batch(
            tokens=to_devices(tokens, None, "batch", None),
            segments=to_devices(np.broadcast_to(numbers, shape), None, "batch", None),
            loss_mask=to_devices(targets, None, "batch", None),
            reference=to_devices(np.zeros((2, ROWS))),
            sizes=(ROWS // 2, 0, ROWS // 2),
        )
        optimizer = make_optimizer(Optimizer(), CFG, optax.constant_schedule(1e-3))
        step = make_train_step(optimizer, PMC(), CFG, dtype="float64")
        state, losses = init_state(params, optimizer), []
        for _ in range(2):
            state, loss, _ = step(state, batch, 1.5, {})
            losses.append(float(loss.loss))
        held = {
            row
            for shard in batch.tokens.addressable_shards
            for row in range(*shard.index[1].indices(ROWS))
        }
        sums = [float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(to_host(state.params))]
    return {
        "losses": losses,
        "responses": decoded,
        "sums": sums,
        "rows": sorted(held),
        "first": from_first(lambda: {"process": jax.process_index(), "infinite": np.inf}),
        "agreed": [agree(jax.process_index() == 1), agree(False, lambda: b"the same")],
        "refused": message_of(refused),
    }


def happening(process: int, step: int, what: str) -> None:
    """Make an error or a signal happen in one process after a step."""
    real = loop.steps

    def steps(*arguments: Any) -> Any:
        for state, record in real(*arguments):
            if record.step == step and jax.process_index() == process:
                if what == "error":
                    raise UserError("the disk of this process is full")
                os.kill(os.getpid(), getattr(signal, what))
            yield state, record

    loop.steps = steps


def main(kind: str, place: str, *arguments: str) -> None:
    """Run as one process."""
    number, port, process = map(int, place.split(":"))
    address = f"127.0.0.1:{port}"
    if kind in ("train", "evaluate"):
        if arguments[0].startswith("at="):
            who, step, what = arguments[0][3:].split(":")
            happening(int(who), int(step), what)
            arguments = arguments[1:]
        here = [
            f"distributed.coordinator_address={address}", f"distributed.num_processes={number}",
            f"distributed.process_id={process}", "distributed.heartbeat_timeout_seconds=10",
        ]  # fmt: skip
        sys.argv = [kind, *arguments, *(here if number > 1 else [])]
        (train if kind == "train" else evaluate).main()
        return
    jax.config.update("jax_enable_x64", True)
    join(DistributedConfig(False, address, number, process, heartbeat_timeout_seconds=10))
    assert several()
    if kind == "parts":
        print(json.dumps(parts(f"{len(jax.local_devices())}x1")))
        return
    if process == 1 and kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if process == 1:
        end_all("the disk of this process is full", 2)
    try:
        agree(False)
    except jax.errors.JaxRuntimeError as error:
        end_all("JaxRuntimeError", 1, error)


if __name__ == "__main__":
    main(*sys.argv[1:])
