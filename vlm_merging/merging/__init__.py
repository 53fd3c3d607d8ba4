"Two models into one. Whoever opens this package finds every method in `METHODS`, wherever it was written."
from . import methods, matrices

__all__ = ['methods', 'matrices']
