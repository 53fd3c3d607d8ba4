"The program as a process, from its first moment to its exit code; `python -m vlm_merging` is `vlm-merging`"
import signal
if signal.getsignal(signal.SIGINT)==signal.default_int_handler: # Until there is something to say
    signal.signal(signal.SIGINT, signal.SIG_DFL)
import errno, os, sys
from vlm_merging.cli.process import BROKEN, INTERRUPT, UNREAD, fill_holes, open_output, say

def program()->None:
    "Run the words of this process, and end it"
    try:
        if signal.getsignal(signal.SIGINT)!=signal.SIG_IGN:     # As under nohup
            signal.signal(signal.SIGINT, INTERRUPT)
        sys.unraisablehook = INTERRUPT.unraised
        fill_holes()
        out, _ = open_output('stdout', 1), open_output('stderr', 2)
        from vlm_merging.cli.main import main
        code = main()
    except SystemExit as e: code = e.code or 0
    except BaseException:
        if INTERRUPT.came: INTERRUPT.end()
        raise
    if signal.getsignal(signal.SIGINT)==INTERRUPT:              # All is done but the end
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    sys.stdout.flush()
    if out.trouble:
        unread = out.trouble.errno==errno.EPIPE
        if not unread: say(f'the output could not be written: {out.trouble.strerror}.')
        code = code or (UNREAD if unread else BROKEN)
    sys.exit(code)

if __name__=='__main__': program()
