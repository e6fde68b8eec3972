"""``python -m launcher`` is ``thawline``."""

from launcher.cli import main

if __name__ == "__main__":
    main()
