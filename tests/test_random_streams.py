import numpy as np

from core.random_streams import Stream, generator, generator_at, torch_seed


def test_numbers_are_those_of_the_bare_key_and_never_change() -> None:
    assert generator(3, 7, Stream.DECODING).random() == np.random.default_rng([3, 7, 31]).random()
    assert torch_seed(1, 2, 3, 4, Stream.DROPOUT) == 4191287931231056878


def test_a_part_of_a_stream_equals_that_part_of_the_whole() -> None:
    whole = generator_at(0, 5, Stream.GENES_PER_CELL).random(9)
    np.testing.assert_array_equal(generator_at(4, 5, Stream.GENES_PER_CELL).random(5), whole[4:])
