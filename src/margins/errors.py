"""The exception that a reader can mend: its message says what was given and what is allowed."""


class MarginsError(Exception):
    """Bad input, missing or altered data, an unreadable record: one clear message, exit status 1 of a command."""


class Unshareable(MarginsError):
    """A row that several processes can't train together: all of them raise this alike, before any step."""
