"""Completion in bash and zsh: what can stand where the cursor is, from the same signatures as the options."""
from __future__ import annotations
import os
from vlm_merging.cli.commands import COMMANDS, PROGRAM, command, shell_options

ASKED = 'COMP_LINE'     # The variable in which a shell gives the line that is typed
INTO_BASHRC = f"""# For bash, write this into ~/.bashrc. For zsh, write it into ~/.zshrc below these words:
# autoload -U compinit bashcompinit && compinit && bashcompinit
complete -o default -C '{PROGRAM} completion' {PROGRAM}"""

def candidates(
    line:str,           # All that was typed up to the cursor
)->list[str]:           # Empty: a file, for all that is known here
    "The words with which a line can go on"
    *before, word = line.split(' ')
    before = [w for w in before if w]
    if len(before)<2: return [c for c in COMMANDS if c.startswith(word)]
    if before[1] not in COMMANDS: return []
    options = {o.flag:o for o in shell_options(COMMANDS[before[1]]).values()}
    known = options[before[-1]].parameter.choices if before[-1] in options else ()
    if not known and word[:1]=='-': known = [flag for flag, o in options.items() if not o.place]
    return [str(k) for k in known if str(k).startswith(word)]

@command(example='vlm-merging completion')
def completion_command()->int: # Exit code
    "Say how a shell completes commands, options and what they can be"
    print(INTO_BASHRC)
    return 0

def asked_by_a_shell()->bool:
    "Does a shell ask what can stand here? Then it is answered"
    if ASKED not in os.environ: return False
    line = os.environ[ASKED]
    print('\n'.join(candidates(line[:int(os.environ.get('COMP_POINT', len(line)))])))
    return True
