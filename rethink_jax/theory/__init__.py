"""Theorems of the papers as programs: constructions that can be run and measured.

An experiment is a module with four names, and one entry in `EXPERIMENTS`:

  FIELDS                    {name: Field}: what a config may set
  run(context, **fields)    the numbers that it finds, as literals for JSON
  FOUND                     what of them `table` and the report rely on (`promised`)
  table(found)              these numbers as text
"""

# By name, the module; imported when it is needed.
EXPERIMENTS = {
    "memorizer": "rethink_jax.theory.memorizer_report",
    "kernel": "rethink_jax.theory.kernel_report",
    "minimum_norm": "rethink_jax.theory.minimum_norm_report",
    "overtraining": "rethink_jax.theory.overtraining_report",
}
