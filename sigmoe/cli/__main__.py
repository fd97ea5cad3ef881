"""`python -m sigmoe.cli` is `sigmoe`."""

from sigmoe.cli import main

raise SystemExit(main())
