"""Names of games, checked before the emulator is asked: for some it ends the process."""

import dataclasses
import difflib

from ale_py import roms

# Two or more must play these; the vector environment ends the process instead of raising.
MULTI_PLAYER_GAMES = frozenset({"combat", "joust", "maze_craze", "warlords"})


@dataclasses.dataclass(frozen=True)
class Game:
    """An Atari game as a task.

    Args:
        name: as the emulator names it, such as "ms_pacman".

    Raises:
        ValueError: there is no such game.
    """

    name: str

    def __post_init__(self):
        refuse_unknown_game(self.name)


def games(names: list[str]) -> list[Game]:
    """Returns the games of these names, each once.

    Raises:
        ValueError: a name is unknown, or given twice.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Games are given more than once: {', '.join(repeated)}.")
    return [Game(name) for name in names]


def available_games() -> list[str]:
    """Returns the names of all games that one player can play, sorted."""
    return sorted(set(roms.get_all_rom_ids()) - MULTI_PLAYER_GAMES)


def refuse_unknown_game(name: str) -> None:
    """Refuses a name that the emulator would not survive.

    Raises:
        ValueError: there is no such game, or it is not for one player.
    """
    if name in MULTI_PLAYER_GAMES:
        raise ValueError(f"{name!r} is a game for several players, which the emulator cannot run.")
    available = available_games()
    if name not in available:
        similar = difflib.get_close_matches(name.lower(), available, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(
            f"The emulator has no game {name!r}. Names are in small letters with underscores, "
            f"such as 'ms_pacman'.{hint}"
        )
