"`python -m vlm_merging` is `vlm-merging`"
import sys
from vlm_merging.cli.main import main

if __name__=='__main__': sys.exit(main())
