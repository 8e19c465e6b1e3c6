import sys

from edm.cli import main

sys.exit(main())
