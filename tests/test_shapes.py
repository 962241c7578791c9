from __future__ import annotations

import torch

from pyro_lowrank.shapes import apply_matrix, time_in_front
from tests.builders import assert_close


def test_a_matrix_is_applied_to_every_vector(dtype: torch.dtype) -> None:
    matrix, vectors = torch.randn(4, 3, dtype=dtype), torch.randn(5, 2, 3, dtype=dtype)
    expected = torch.stack([torch.stack([matrix @ vector for vector in row]) for row in vectors])
    assert_close(apply_matrix(matrix, vectors), expected)


def test_batch_dims_of_a_matrix_line_up_with_those_of_the_vectors() -> None:
    # One matrix per particle, the same for all trials.
    matrices, vectors = torch.randn(5, 1, 4, 3), torch.randn(5, 2, 3)
    expected = torch.stack([vectors[p] @ matrices[p, 0].mT for p in range(5)])
    assert_close(apply_matrix(matrices, vectors), expected)


def test_time_moves_to_the_front_and_lacking_batch_dims_are_put_behind_it() -> None:
    sequence = torch.randn(7, 50, 3)
    assert torch.equal(time_in_front(sequence, 1), sequence.movedim(1, 0))
    assert torch.equal(time_in_front(sequence, 3), sequence.movedim(1, 0)[:, None, None])
    assert time_in_front(sequence[:, :0], 2).shape == (0, 1, 7, 3)
