"""What orbax keeps: the lanes of a running group, and finished networks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from rethink_jax import damaged, models, remote, step, train
from rethink_jax.schema import UserError, first_line, flatten
from rethink_jax.trials import FIELDS

# Orbax orders the steps of a save by counters of the whole process: two saves at once, from two
# threads, can delete each other's unfinished folders (seen with 0.12.8). Leaving the context of a
# checkpointer waits for its save, so each is done before the next begins.
_ONE_SAVE = threading.Lock()

# Else, where a folder cannot be made, threads wait for it for twenty minutes, and the process for
# them (0.12.8).
_IN_ORDER = ocp.options.AsyncOptions(create_directories_asynchronously=False)


@contextlib.contextmanager
def _saving() -> Iterator[None]:
    """One save at a time. Raises OSError for what the file system refuses."""
    with _ONE_SAVE:
        try:
            yield
        # The storage under orbax has an error of its own for it, with the system's number within.
        except ValueError as error:
            found = re.search(r"os_error_code='(\d+)'", str(error))
            gone = errno.ENOENT if str(error).startswith("NOT_FOUND") else None
            if number := int(found[1]) if found else gone:
                raise OSError(number, os.strerror(number)) from error
            raise


class GroupCheckpoint:
    """The two newest states of a group's lanes, each complete or not there at all.

    A checkpoint holds the stacked trial states and, per lane, the id of its trial.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                enable_async_checkpointing=False,
                async_options=_IN_ORDER,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def save(self, state_L: train.TrialState, meta: dict[str, Any]) -> None:
        """Writes the state; returns when it is on disk."""
        step = (self._manager.latest_step() or 0) + 1
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state_L), meta=ocp.args.JsonSave(meta)
        )
        with _saving():
            self._manager.save(step, args=items)

    def restore(
        self, one_state: train.TrialState, wanted: Collection[str] | None = None
    ) -> tuple[train.TrialState, dict[str, Any]] | None:
        """The newest readable state (numpy arrays) and its meta, or None.

        Args:
          one_state: the shapes and dtypes of one trial's state.
          wanted: trials, one of which it must hold; None: it may hold any.
        """
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                meta = self._manager.restore(
                    number, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
                ).meta
                if wanted is not None and set(wanted).isdisjoint(meta["lanes"]):
                    continue
                lanes = len(meta["lanes"])
                target = jax.tree.map(
                    lambda s, n=lanes: np.empty((n, *s.shape), s.dtype), one_state
                )
                restored = self._manager.restore(
                    number, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
                )
                return restored.state, meta
            # Orbax and its storage raise many kinds of error on a damaged checkpoint.
            except Exception as error:
                logging.warning(
                    "checkpoint %s of %s cannot be read and is passed over (%s)",
                    number, self._folder.name, str(error).splitlines()[:1],
                )  # fmt: skip
        return None

    def close(self, delete: bool = False) -> None:
        """Ends the background writing; with `delete`, the group is done and leaves nothing."""
        self._manager.wait_until_finished()
        self._manager.close()
        if delete:
            shutil.rmtree(self._folder, ignore_errors=True)


def latest(
    own: tuple[Any, dict[str, Any]] | None,
    others: Sequence[tuple[Any, dict[str, Any]]],
    trial_ids: Collection[str],
) -> tuple[Any, dict[str, Any]] | None:
    """Of several checkpoints of a group one, in which each of these trials is where it got last.

    Args:
      own, others: (state_L, meta). Those of streamed images, which have a place in common in the
        order of the images, cannot be put together; then it is `own`.
    """
    found = [*([own] if own else []), *others]
    if not others or any("position" in meta for _, meta in found):
        return own
    newest: dict[str, tuple[int, int, int]] = {}
    for which, (state_L, meta) in enumerate(found):
        for row, trial_id in enumerate(meta["lanes"]):
            if trial_id in trial_ids:
                place = int(state_L.epoch[row]), -which, row
                newest[trial_id] = max(newest.get(trial_id, place), place)
    places = [(-which, row) for _, which, row in newest.values()]
    if not places or (own and not any(which for which, _ in places)):
        return own
    state_L = jax.tree.map(
        lambda *leaves_L: np.stack([leaves_L[which][row] for which, row in places]),
        *(state_L for state_L, _ in found),
    )
    measured = [found[which][1].get("measured", {}) for which, _ in places]
    return state_L, {
        "lanes": list(newest),
        "layout": None,
        "measured": {i: m[i] for i, m in zip(newest, measured, strict=True) if i in m},
    }


def save_network(folder: Path, variables: dict[str, Any]) -> None:
    """Writes one finished network: params, and what else the model keeps (batch statistics)."""
    with _saving(), ocp.StandardCheckpointer(async_options=_IN_ORDER) as checkpointer:
        checkpointer.save(folder.absolute(), variables, force=True)


class LoadedTrial(NamedTuple):
    """A finished network as it was trained.

    model: (init, apply)   variables: {"params", ...}, numpy arrays
    initial_variables: as they were before training, made again from the trial's seed
    fields: the trial's fields by dotted name   result: its row of results
    """

    model: models.Model
    variables: dict[str, Any]
    initial_variables: dict[str, Any]
    fields: dict[str, Any]
    result: dict[str, Any]


def load_trial(workdir: str | Path, trial_id: str) -> LoadedTrial:
    """Loads the network that a trial ended with.

    Raises:
      UserError: no such trial in the workdir, or its network was not kept.
    """
    workdir = remote.fetched(workdir, everything=True)
    folder = workdir / "trials" / trial_id
    if not Path(workdir).is_dir():
        raise UserError(f"there is no folder {workdir}; name the workdir of a sweep")
    if not (folder / "result.json").is_file():
        raise UserError(
            f"no finished trial {trial_id!r} in {workdir}; its trials are listed in "
            f"{Path(workdir) / 'trials.csv'}"
        )
    result = json.loads((folder / "result.json").read_text())
    if not (folder / "network").is_dir():
        raise UserError(
            f"trial {trial_id} kept no network (status {result['status']}); networks are kept with "
            "--config.checkpoint.keep=final, except of diverged trials"
        )
    if (name := result["trial"]["model"]["name"]) not in models.MODELS:
        raise UserError(
            f"trial {trial_id} is of the network {name!r}, which is not known here; import what "
            "adds it to rethink_jax.models.MODELS first (in commands: --own=FILE)"
        )
    variables = _read_network(folder / "network")
    # The default of a field that is newer than the trial is what was done before.
    fields = {k: f.default for k, f in FIELDS.items()} | {
        k: tuple(v) if isinstance(v, list) else v for k, v in flatten(result["trial"]).items()
    }
    spec = step.Spec(
        fields=fields, num_train=0, num_test=0, image_shape=tuple(result["image_shape"]),
        num_classes=result["num_classes"], used=frozenset(), evaluate_every=1,
    )  # fmt: skip
    initial = jax.tree.map(np.asarray, train.init_variables(spec, fields["seed"]))
    if _shapes(variables) != _shapes(initial):
        raise UserError(
            f"{folder / 'network'} holds a network of another config than trial {trial_id}; "
            f"{damaged.AGAIN}"
        )
    return LoadedTrial(spec.model, variables, initial, fields, result)


def _read_network(folder: Path) -> Any:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute())
    # Orbax and its storage raise many kinds of error on a damaged network.
    except Exception as error:
        raise UserError(
            f"the network in {folder} cannot be read ({first_line(error)}); {damaged.AGAIN}"
        ) from error


def _shapes(variables: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in paths}
