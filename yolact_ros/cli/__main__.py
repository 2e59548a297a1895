"""`python -m yolact_ros.cli` is the command `yolact`."""

from yolact_ros.cli import main

raise SystemExit(main())
