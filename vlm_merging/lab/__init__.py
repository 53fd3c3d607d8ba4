"Models and questions to learn on. A name is fetched when it is asked for, so nothing heavy comes along."
from importlib import import_module

_HOMES = dict(
    trio='lab_folder questions Question scene words draw_scene lab_chat answer right accuracy TOPICS PLACES',
    tiny='make_vlm make_llm make_trio Trio blank_picture ask_inputs', kinds='KINDS', remote='REMOTE',
    training='train_trio')
_HOMES = {name:room for room, names in _HOMES.items() for name in names.split()}
__all__ = list(_HOMES)

def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)

def __dir__(): return sorted({*globals(), *__all__})
