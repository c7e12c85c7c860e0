"""The benchmark: trial-steps per second of the engine and of other ways to run the same trials.

session -> client -> worker, torch_worker; goals and table make of it what is printed.
"""
