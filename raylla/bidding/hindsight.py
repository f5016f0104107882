"""What a day could have been worth: liquid welfare, and the most of it with hindsight.

Liquid welfare (Dobzinski and Paes Leme 2014) is what advertisers could be made to pay for what they got:
of each min(budget, V / target), with V the value of its clicks and ``target`` the return that it wants on
what it spends (1: none).  n advertisers, a answers to q questions; money is in bid units.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import linprog

from raylla.auction.checks import Array, ending, numbers


def liquid_welfare(value: ArrayLike, budgets: ArrayLike, targets: ArrayLike) -> Array:
    """min(budget, value / target) of each advertiser [n].

    Raises:
        ValueError: a number is negative, a target is 0, or the shapes do not fit.
    """
    value, budgets, targets = _advertisers(value, budgets, targets)
    result: Array = np.minimum(budgets, value / targets)
    return result


def offline_optimum(
    worth: ArrayLike, question: ArrayLike, users: ArrayLike, budgets: ArrayLike, targets: ArrayLike
) -> float:
    """The most liquid welfare of any mix of the answers.

    ``worth`` [a, n] is the value of the clicks that one user's reading of an answer brings each
    advertiser, ``question`` [a] which of the questions it answers, ``users`` [q] how many ask each.  The
    linear program: maximize sum_i w_i subject to w_i <= budget_i, target_i w_i <= sum_a x_a worth_ai, and
    for each question sum x_a <= users, where x_a >= 0 users get answer a.  Whoever chooses answers user by
    user, by whatever rule, has at most this.

    Raises:
        ValueError: a number is negative, a target is 0, a question is none of the q, or shapes do not fit.
    """
    worth, users = np.atleast_2d(numbers("worth", worth, 0)), numbers("users", users, 0)
    asked = numbers("question", question, 0, len(users) - 1).astype(int)
    answers, count = worth.shape
    _, budgets, targets = _advertisers(np.zeros(count), budgets, targets)
    ending("question", asked, answers)
    gains = sparse.hstack([sparse.diags(targets), sparse.csr_matrix(-worth.T)])
    of = sparse.csr_matrix((np.ones(answers), (asked, np.arange(answers))), (len(users), answers))
    readers = sparse.hstack([sparse.csr_matrix((len(users), count)), of])
    solution = linprog(
        np.concatenate([-np.ones(count), np.zeros(answers)]),
        A_ub=sparse.vstack([gains, readers]),
        b_ub=np.concatenate([np.zeros(count), users]),
        bounds=[(0, budget) for budget in budgets] + [(0, None)] * answers,
        method="highs",
    )
    if solution.status != 0:  # it is feasible at 0 and bounded by the budgets
        raise ValueError(f"the linear program was not solved: {solution.message}")
    return float(-solution.fun)


def _advertisers(value: ArrayLike, budgets: ArrayLike, targets: ArrayLike) -> tuple[Array, Array, Array]:
    value, budgets = numbers("value", value, 0), numbers("budgets", budgets, 0)
    targets = numbers("targets", targets, np.finfo(float).tiny)
    return value, ending("budgets", budgets, *value.shape), ending("targets", targets, *value.shape)
