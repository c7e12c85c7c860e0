"""The axes of a sweep, from what its trials differ in."""

from __future__ import annotations

import pandas as pd

from rethink_jax.report.series import field_columns

# Which image is replaced is as a seed: any would do.
SEEDS = ("seed", "corruption.seed", "data.seed", "data.replaced")


def axes_of(trials: pd.DataFrame) -> dict[str, list[str]]:
    """{axis: value of each trial, as text}: the fields that differ, seeds apart.

    A field that another one settles, as the learning rate that goes with a network, is no axis of
    its own. Where two settle each other, as when they are swept together, they are one axis.

    trials: rows of results
    """
    fields = [c for c in field_columns(trials) if c not in SEEDS]
    values = trials[fields].map(str)
    varied = [c for c in fields if values[c].nunique() > 1]

    def settles(one: str, other: str) -> bool:
        return len(values[[one, other]].drop_duplicates()) == values[one].nunique()

    same = {c: [o for o in varied if settles(c, o) and settles(o, c)] for c in varied}
    own = [c for c in varied if not any(settles(o, c) for o in varied if o not in same[c])]
    leaves = [_leaf(c) for c in varied]
    short = {c: _leaf(c) if leaves.count(_leaf(c)) == 1 else c for c in varied}

    def named(field: str) -> list[str]:
        """The fields that an axis has its name from: of a network, not all that comes with it."""
        fields, name = same[field], "model.name"
        if name in varied and settles(field, name) and any(f.startswith("model.") for f in fields):
            kept = (f for f in fields if not f.startswith("model.") or not settles(name, f))
            return [name, *kept]
        return fields

    return {
        ", ".join(short[f] for f in named(c)): [
            ", ".join(v for v in row if v != "nan") or "nan" for row in values[named(c)].to_numpy()
        ]
        for c in own
    }


def _leaf(field: str) -> str:
    """A field's short name: learning_rate, hidden; and of a name, what has it: model, data."""
    section, _, leaf = field.rpartition(".")
    return section if leaf == "name" else leaf
