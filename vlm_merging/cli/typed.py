"""What is typed becomes a value: numbers, words, lists, paths; what may mean two things is refused."""
from __future__ import annotations
import argparse, math, os, re
from vlm_merging.checkpoints.places import path_of
from vlm_merging.checkpoints.texts import did_you_mean

def decimal_comma(
    text:str,           # As typed
)->str:
    "What is said of numbers with commas and no point among them; '' where it is clear what is meant"
    parts = [p.strip() for p in text.split(',')]
    if len(parts)<2 or not all(re.fullmatch(r'[+-]?\d+', p) for p in parts): return ''
    one = f"the number {'.'.join(parts)}" if len(parts)==2 else 'numbers with decimal commas'
    return f"{text} may be {one}, or the list {','.join(f'{p}.0' for p in parts)}. Write it with points."

def knob_value(
    text:str,           # As typed
):
    "A knob as written on the command line: number, word, yes or no, or a curve: numbers with commas"
    if text.lower() in ('yes', 'true', 'no', 'false'): return text.lower() in ('yes', 'true')
    if unclear := decimal_comma(text): raise argparse.ArgumentTypeError(unclear)
    try: numbers = [float(t) for t in text.split(',')]
    except ValueError: return text
    return numbers if len(numbers)>1 else numbers[0]

def _number(kind):
    "A reader of whole or of all numbers"
    def read(text):
        try: value = kind(text)
        except ValueError: value = None
        if value is not None and math.isfinite(value) and abs(value)<2**63: return value
        comma = kind is float and re.fullmatch(r'[+-]?\d*,\d+', text)
        meant = f" Did you mean {text.replace(',', '.')}?" if comma else ''
        whole = 'whole ' if kind is int else ''
        raise argparse.ArgumentTypeError(f'{text[:40]!r} is no {whole}number that can be meant.{meant}')
    return read

def unknown(
    word:str,           # As typed
    known,              # What it can be
)->str:
    "What is said of a word that is none of the known ones"
    return f"{word!r} is not known.{did_you_mean(word, known)} There are: {', '.join(known)}."

def _word(known):
    def check(text):
        if text in known: return text
        raise argparse.ArgumentTypeError(unknown(text, known))
    return check

def _typed_place(text):
    try: return path_of(text)
    except ValueError as e: raise argparse.ArgumentTypeError(str(e)) from None

class Split(argparse.Action):
    "Words with commas between them; what was typed in several words, or with several flags, is one list"
    def __call__(self, parser, namespace, values, option_string=None):
        typed = [values] if isinstance(values, str) else values
        words = [w.strip() for t in typed for w in _pieces(t) if w.strip()]
        odd = [w for w in words if w not in self.known] if self.known else []
        if odd: parser.error(f'argument {option_string}: {unknown(odd[0], self.known)}')
        if self.known and not words:
            parser.error(f"argument {option_string}: it is empty. There are: {', '.join(self.known)}.")
        words = [*getattr(namespace, self.dest, ()), *words]
        setattr(namespace, self.dest, tuple(dict.fromkeys(words)))

class OneOrMore(argparse.Action):
    "A word; typed with several flags, a list in which order and repetition count"
    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest, None)
        several = before if isinstance(before, list) else [before]
        setattr(namespace, self.dest, values if before is None else [*several, values])

def _pieces(text):
    "At its commas, unless it is a file that has some in its name"
    return [text] if ',' in text and os.path.exists(text) else text.split(',')

def value_kind(
    option,             # An `Option`, from `shell_options`
    spaced:bool=False,  # May it take several words?
)->dict:                # Arguments of `add_argument`
    "How the words behind an option are read"
    p, words = option.parameter, dict(nargs='+') if spaced else {}
    if p.kinds==('knob',) or p.default is True: return dict(type=knob_value)
    if p.kinds==('bool',): return dict(action='store_true')
    if p.several and 'str' in p.kinds: return dict(action=OneOrMore)
    if p.several: return words|dict(action=type('Split', (Split,), dict(known=p.choices)))
    if p.choices: return words|dict(type=_word(p.choices))
    for kind in (int, float):
        if kind.__name__ in p.kinds and 'str' not in p.kinds: return dict(type=_number(kind))
    return words|(dict(type=_typed_place) if 'Path' in p.kinds and 'str' not in p.kinds else {})
