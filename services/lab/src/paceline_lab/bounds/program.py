"""Linear programs put together from arrays: maximise worth @ x with A x <= b, 0 <= x <= upper."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_TIME_LIMIT_S = 120.0


class MissingSolverError(RuntimeError):
    """scipy is not installed: bounds need it, serving does not."""

    def __init__(self) -> None:
        super().__init__(
            "scipy is not installed; bounds need it and serving does not: run `make setup-train`"
        )


class BoundError(RuntimeError):
    """The solver found no optimum."""


class Program:
    """Variables and rows, added by blocks."""

    def __init__(self) -> None:
        self._upper: list[NDArray[np.float64]] = []
        self._limits: list[NDArray[np.float64]] = []
        self._entries: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        self.variables = 0
        self.rows = 0

    def add_variables(self, count: int, upper: float = np.inf) -> NDArray[np.int64]:
        """New variables in [0, upper]: their numbers."""
        self._upper.append(np.full(count, upper))
        first, self.variables = self.variables, self.variables + count
        return np.arange(first, self.variables)

    def add_rows(self, limits: ArrayLike) -> NDArray[np.int64]:
        """New rows `... <= limit`, empty so far: their numbers."""
        block = np.atleast_1d(np.asarray(limits, np.float64))
        self._limits.append(block)
        first, self.rows = self.rows, self.rows + len(block)
        return np.arange(first, self.rows)

    def put(self, rows: ArrayLike, variables: ArrayLike, values: ArrayLike) -> None:
        """Add coefficients; those of one row and variable add up. The three broadcast together."""
        r, v, a = np.broadcast_arrays(np.asarray(rows), np.asarray(variables), np.asarray(values, np.float64))
        self._entries.append((r.ravel().astype(np.int64), v.ravel().astype(np.int64), a.ravel()))

    @property
    def upper(self) -> NDArray[np.float64]:
        """Upper bounds of all variables."""
        return np.concatenate(self._upper)

    @property
    def limits(self) -> NDArray[np.float64]:
        """Right-hand sides of all rows."""
        return np.concatenate(self._limits)

    def matrix(self) -> Any:
        """The rows as a scipy CSC matrix. Raises MissingSolverError."""
        sparse = _scipy_sparse()
        rows, variables, values = (np.concatenate(column) for column in zip(*self._entries, strict=True))
        return sparse.csc_matrix((values, (rows, variables)), shape=(self.rows, self.variables))


def maximum(program: Program, worth: NDArray[np.float64], matrix: Any = None) -> float:
    """The greatest worth @ x. Raises MissingSolverError and BoundError.

    `matrix` is `program.matrix()` where it is at hand. What is returned is the dual objective where that is larger
    than the primal one: it bounds the optimum also where the solver stopped at its tolerance.
    """
    optimize = _scipy_optimize()
    upper = program.upper
    result = optimize.linprog(
        -worth,
        A_ub=program.matrix() if matrix is None else matrix,
        b_ub=program.limits,
        bounds=np.column_stack([np.zeros_like(upper), upper]),
        method="highs-ds",
        options={"time_limit": _TIME_LIMIT_S},
    )
    if result.status != 0:
        raise BoundError(f"the solver ended without an optimum: {result.message}")
    finite = np.isfinite(upper)
    dual = program.limits @ -result.ineqlin.marginals + upper[finite] @ -result.upper.marginals[finite]
    return float(max(-result.fun, dual))


def _scipy_optimize() -> Any:
    try:
        from scipy import optimize
    except ModuleNotFoundError as error:
        raise MissingSolverError from error
    return optimize


def _scipy_sparse() -> Any:
    try:
        from scipy import sparse
    except ModuleNotFoundError as error:
        raise MissingSolverError from error
    return sparse
