"""Small numbers for names, so that arrays can hold them."""


class Interner:
    """Counts the users of each name; the number of a name without users is used again."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._users: list[int] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def acquire(self, name: str) -> int:
        """The number of `name`; one more user."""
        number = self._numbers.get(name)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._names[number] = name
            else:
                number = len(self._names)
                self._names.append(name)
                self._users.append(0)
            self._numbers[name] = number
        self._users[number] += 1
        return number

    def release(self, number: int) -> None:
        """One user fewer."""
        self._users[number] -= 1
        if self._users[number] == 0:
            del self._numbers[self._names[number]]
            self._names[number] = ""
            self._free.append(number)

    def name(self, number: int) -> str:
        """The name behind a number in use."""
        return self._names[number]
