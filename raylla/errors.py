"""Errors that a user can act on: each message names the field, the value and the way out."""


class RayllaError(Exception):
    """Base of every error that raylla raises on purpose."""


class ConfigError(RayllaError):
    """A config file, an override or a combination of values is unusable."""


class WorldError(RayllaError):
    """Profiles, ads or queries are missing, malformed or contradictory."""


class PlacementError(RayllaError):
    """The cluster cannot ever place what the config asks for."""


class RunError(RayllaError):
    """A run directory cannot be used: another config, missing weights, nothing trained."""


class DeadlineError(RayllaError):
    """A wait ran past its deadline; the message names what was waited for and who owns it."""


class BudgetError(RayllaError):
    """More samples were dropped in a stage than the config allows."""


class WeightError(RayllaError):
    """An engine did not take over the weights that it was given."""


class MoneyError(RayllaError):
    """An amount that nothing may cost: no bid of the grid, negative, or beyond what is counted."""


class StoreError(RayllaError):
    """The endpoint's database cannot be used: unreachable, of a newer version, or a record that clashes."""


class UnknownError(StoreError):
    """Nothing of that id is in the store, or not for whoever asks."""


class ClashError(StoreError):
    """The store already holds something else under that id or reference."""


class TokenError(RayllaError):
    """A click token or an API key that does not verify, or key material that cannot sign."""


class EndpointError(RayllaError):
    """The endpoint cannot answer a request: its engine failed, or refuses the prompt."""


class BusyError(RayllaError):
    """The endpoint cannot take a request, or not finish it in time; it is worth trying again."""


class DeployError(RayllaError):
    """A Serve application could not be deployed or changed; what ran before still runs."""
