"""What is told beside the numbers."""

from audiosep_jax.evaluation.record import command_of


def test_command_is_the_same_for_all_processes():
    words = ["--audio", "my clips", "--output", "out"]
    expected = "python -m audiosep_jax.evaluate --audio 'my clips' --output out"
    for extra in ([], ["--shard", "1/2"], ["--shard=0/2"], ["--overwrite"]):
        assert command_of([*words[:2], *extra, *words[2:]]) == expected
