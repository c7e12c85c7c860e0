"""What a subject remembers."""

import dataclasses

from rethink_jax.measures.subject import Subject, once


def test_a_function_is_computed_once_for_each_subject_and_choice():
    calls = []

    @once
    def measure(subject, name="a", power=2):
        calls.append((name, power))
        return name * power

    subject = Subject(None, {}, None, None)
    assert measure(subject) == measure(subject, "a") == measure(subject, power=2, name="a") == "aa"
    assert calls == [("a", 2)]
    assert measure(subject, "b") == "bb"
    measure(dataclasses.replace(subject))
    assert calls == [("a", 2), ("b", 2), ("a", 2)]
