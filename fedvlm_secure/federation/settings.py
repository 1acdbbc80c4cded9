"""What a run does, in one TOML file: kebab-case names, the same in the file, on the command line and in reports."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY
from fedvlm_secure.secagg.plan import HONEST_BUT_CURIOUS, MALICIOUS_SERVER
from fedvlm_secure.secagg.roster import check_name

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
ThreatModel = Literal["honest-but-curious", "malicious-server"]
assert {HONEST_BUT_CURIOUS, MALICIOUS_SERVER} == set(ThreatModel.__args__)  # type: ignore[attr-defined]


class _Table(BaseModel):
    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True, extra="forbid", frozen=True
    )


class RowsTable(_Table):
    """``[rows]``: which rows of the data set are used, and which site holds which.

    ``partition = "natural"``: a row's site is what it has in the column ``by``; left out, that is ``site`` if rows have
    one, else ``origin_dataset``. The others deal pictures to so many ``sites`` by ``flwr-datasets``: evenly (``iid``),
    or skewed by the values in ``by``, the answers (``chosen``) if left out: ``dirichlet`` with concentration ``alpha``,
    ``pathological`` with 2 values a site, ``shard`` with 2 shards a site of the sorted rows; ``seed`` draws another
    deal. ``by`` may join columns, as in ``"origin_dataset+question-type"``; the latter is told by ``origin_split``. Own
    rows with the same value in ``group`` (a picture, or a column such as a patient's number) are in one split.
    ``max-rows`` takes that many only. A row that cannot be used is skipped and counted, or ends the run.
    """

    partition: Literal["natural", "iid", "dirichlet", "pathological", "shard"] = "natural"
    by: Annotated[str, Field(min_length=1)] | None = None
    sites: Annotated[int, Field(ge=1, le=10_000)] = 8
    alpha: Positive = 0.5
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    group: Annotated[str, Field(min_length=1)] = "image_path"
    max_rows: Count | None = None
    on_bad_row: Literal["refuse", "skip"] = "refuse"


class AdapterTable(_Table):
    """``[adapter]``: the LoRA adapter and what of it is shared, see :mod:`fedvlm_secure.adapters.strategies`.

    ``layers`` puts it on the last so many layers of the text tower only, ``modules`` on these projections only. A
    begins at random or, with ``init = "public"``, with the bases that came with the model. The first ``warm_up`` rounds
    are plain LoRA.
    """

    strategy: Literal["plora", "lora", "local", "fedsa", "ffa", "rolora", "fedsb", "ditto"] = "plora"
    rank: Annotated[int, Field(ge=1, le=256)] = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: Count | None = None
    modules: tuple[str, ...] = ()
    init: Literal["random", "public"] = "random"
    warm_up: Annotated[int, Field(ge=0)] = 0


class TrainingTable(_Table):
    """``[training]``: one hospital's local work in one round.

    ``proximal`` draws what is shared to where the round began (FedProx); under ``strategy = "ditto"`` it draws the
    hospital's own copy to the shared adapter.

    Under ``privacy.mode = "record"`` and SGD, ``learning_rate`` is for noise multipliers up to 4; above, steps are
    shorter in proportion, so that their noise stays the same.
    """

    steps: Count = 15
    optimizer: Literal["adamw", "sgd"] = "adamw"
    batch_size: Count = 32
    learning_rate: Positive = 4e-3
    b_learning_rate_factor: Positive = 1.0
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    proximal: NotNegative = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"


class AggregationTable(_Table):
    """``[aggregation]``: what the server proposes in every plan.

    ``max-corrupt`` left out is 1, or 0 under a protocol whose key every hospital holds (``ckks``, ``bfv``); such a key
    is dealt anew after ``key-rounds`` rounds, or once a run, and after every failed attempt. ``keep-payloads`` lets the
    server keep every reply whole, so that auditors can recompute sums; left out is false.
    """

    protocol: Literal["plain", "pairwise", "ckks", "bfv"] = "pairwise"
    threat_model: ThreatModel = "malicious-server"
    max_corrupt: Annotated[int, Field(ge=0)] | None = None
    threshold: Count | None = None
    min_survivors: Count | None = None
    clip_norm: Positive = 10.0
    value_bits: Annotated[int, Field(ge=2, le=24)] = 20
    weight_max: Annotated[int, Field(ge=1, lt=1 << 32)] = 4096
    rows_per_weight: Count = 1
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    attempts: Count = 3
    key_rounds: Count | None = None
    keep_payloads: bool | None = None


class PolicyTable(_Table):
    """``[policy]``: every hospital's floors; a plan below one of them is refused.

    ``protocols`` left out is what ``[aggregation]`` proposes, unless that is ``plain``; ``max-corrupt`` left out is 1,
    or 0 if all those protocols have a key that every hospital holds. ``published`` lists the counters whose sums the
    server may be told under those: it cannot read them.
    """

    threat_model: ThreatModel = "malicious-server"
    max_corrupt: Annotated[int, Field(ge=0)] | None = None
    min_cohort: Count = 3
    min_survivors: Annotated[int, Field(ge=2)] = 3
    protocols: tuple[str, ...] | None = None
    shared_key_despite_collusion: bool = False
    published: tuple[Literal["weight", "correct", "asked", "loss-milli"], ...] = ()


class PrivacyTable(_Table):
    """``[privacy]``: differential privacy, of a unit's rows in every hospital or of a whole hospital.

    ``record``: DP-SGD at every hospital; a ``unit`` (all rows of one picture; one row; or all rows with the same value
    in a column) is drawn with probability ``sample-rate`` in every step. ``client``: every hospital adds its share of
    noise inside the secure sum. Noise is chosen for ``target-epsilon`` over the whole run, or is ``noise-multiplier``.
    ``weights = "size-band"`` lets a hospital count, at record level, by its rows rounded down to a power of two, which
    the guarantee takes for known; under ``"equal"`` the noise of the smallest weighs as much as the signal of the
    largest. ``ledger`` is the folder of the hospitals' ledgers, the run directory if left out; a hospital takes part in
    nothing that would bring the total of all its releases above ``epsilon-limit``.
    """

    mode: Literal["none", "record", "client"] = "none"
    target_epsilon: Positive = 8.0
    target_delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    noise_multiplier: Annotated[float, Field(ge=0.01, le=1e6)] | None = None
    max_grad_norm: Positive = 1.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    unit: Annotated[str, Field(min_length=1)] = "image"
    weights: Literal["equal", "size-band"] = "equal"
    accountant: Literal["prv", "rdp", "pld"] = "prv"
    epsilon_limit: Positive | None = None
    ledger: str | None = None

    @model_validator(mode="after")
    def _weights_fit(self) -> "PrivacyTable":
        if self.mode == "client" and self.weights != "equal":
            raise ValueError('weights = "size-band" is for mode = "record"; noise inside the sum needs equal weights')
        return self


class SimulationTable(_Table):
    """``[simulation]``: things that happen by themselves in the field."""

    dropout_rate: Annotated[float, Field(ge=0, le=1)] = 0.0


# What other defaults a mode of differential privacy has. Record level (ADR 17): directions known beforehand, few large
# steps, and A so slow that clipping and noise are spent on B. The rotation's range needs fewer bits where noise is far
# above one step.
_DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "record": {
        "adapter": {
            "layers": 1,
            "modules": ["o_proj", "gate_proj", "up_proj", "down_proj"],
            "init": "public",
            "rank": 64,
            "alpha": 256.0,
        },
        "training": {
            "steps": 10,
            "optimizer": "sgd",
            "batch-size": 256,
            "learning-rate": 1.8e-5,
            "b-learning-rate-factor": 1000.0,
        },
        "aggregation": {"clip-norm": 30.0},
        "privacy": {"max-grad-norm": 4.0},
    },
    "client": {"aggregation": {"value-bits": 12, "weight-max": 1}},
}
# What a strategy has other defaults for.
_DEFAULTS_OF_STRATEGIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"ditto": {"training": {"proximal": 0.1}}}


class Settings(_Table):
    """One run. Defaults are the demo's, or those of the mode of differential privacy.

    ``data`` names one data set, see :func:`fedvlm_secure.data.load`, or is the table ``[data]`` that names a folder or
    file of rows for each site. ``threads`` is the number of torch threads: a run repeats exactly only with the same
    number.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "demo"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    model: str = "embedded"
    data: str | dict[str, str] = "hospitals"
    sites: tuple[str, ...] = ()
    rounds: Count = 12
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: Count = 2
    rows: RowsTable = RowsTable()
    adapter: AdapterTable = AdapterTable()
    training: TrainingTable = TrainingTable()
    aggregation: AggregationTable = AggregationTable()
    policy: PolicyTable = PolicyTable()
    privacy: PrivacyTable = PrivacyTable()
    simulation: SimulationTable = SimulationTable()

    @model_validator(mode="before")
    @classmethod
    def _other_defaults(cls, values: Any) -> Any:
        """Fill in what the mode of differential privacy, or the strategy, has other defaults for."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        chosen = (_DEFAULTS, "privacy", "mode"), (_DEFAULTS_OF_STRATEGIES, "adapter", "strategy")
        for others, table, key in chosen:
            given = filled.get(table)
            word = given.get(key) if isinstance(given, Mapping) else getattr(given, key, None)
            if isinstance(word, str) and word in others:
                _fill(filled, others[word])
        return filled

    @field_validator("data", mode="before")
    @classmethod
    def _data_is_told(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return _is_text(value, 'data = "FOLDER", or [data] with SITE = "FOLDER" for each site')
        if not value:
            raise ValueError('is empty; write SITE = "FOLDER" for each site')
        for site, place in value.items():
            _is_text(place, f'{site} = "FOLDER"')
            try:
                check_name(site)
            except MisuseError as error:
                raise ValueError(str(error)) from None
        return dict(value)

    @model_validator(mode="after")
    def _data_fits(self) -> "Settings":
        if not isinstance(self.data, str) and (self.rows.partition != "natural" or self.rows.by is not None):
            raise ValueError("[rows] partition and by are for one data set; [data] says which site holds which rows")
        return self

    @model_validator(mode="after")
    def _strategy_fits(self) -> "Settings":
        strategy, mode, warm_up = self.adapter.strategy, self.privacy.mode, self.adapter.warm_up
        if strategy == "ditto" and mode == "record":
            raise ValueError('strategy = "ditto" trains an adapter without noise; use another under mode = "record"')
        if (strategy == "rolora" or warm_up) and mode == "client":
            cause = 'strategy = "rolora"' if strategy == "rolora" else "a warm-up"
            raise ValueError(f'{cause} shares another part in some rounds; mode = "client" counts on one size')
        if warm_up >= self.rounds:
            raise ValueError(f"{self.rounds} rounds end before a warm-up of {warm_up} has; choose a smaller warm-up")
        return self

    @classmethod
    def from_toml(cls, path: Path | str, overrides: Sequence[str] = ()) -> "Settings":
        """Settings from a TOML file, with ``key=value`` overrides such as ``adapter.strategy=lora``.

        Raises:
            MisuseError: the file cannot be read, or a value is wrong; the text says which and what would be right.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise MisuseError(f"settings: cannot read {path}: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise MisuseError(f"settings: {path} is not TOML: {error}") from None
        return cls.from_tables(tables, overrides)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], overrides: Sequence[str] = ()) -> "Settings":
        """Settings from nested tables, with ``key=value`` overrides; raises :class:`MisuseError`."""
        merged: dict[str, Any] = {key: dict(v) if isinstance(v, Mapping) else v for key, v in tables.items()}
        for override in overrides:
            _override(merged, override)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise MisuseError(_sentence(cls, error)) from None

    def to_toml(self) -> str:
        """The settings as TOML, every value spelt out."""
        top, tables = [], []
        for key, value in self.model_dump(by_alias=True, exclude_none=True).items():
            if isinstance(value, dict):
                lines = [f"{_key(name)} = {_toml(entry)}" for name, entry in value.items()]
                tables.append("\n".join([f"[{key}]", *lines]))
            else:
                top.append(f"{key} = {_toml(value)}")
        return "\n\n".join(["\n".join(top), *tables]) + "\n"

    @property
    def keeps_account(self) -> bool:
        """Whether hospitals write down what their data releases; without privacy, ledger or limit nobody asks."""
        privacy = self.privacy
        return privacy.mode != "none" or privacy.ledger is not None or privacy.epsilon_limit is not None

    @property
    def insecure(self) -> tuple[str, ...]:
        """What this run opts into that protects less than the default, for reports to say loudly."""
        found = []
        if self.aggregation.protocol == "plain":
            found.append("protocol plain: the server reads every hospital's update")
        if self.aggregation.threat_model != MALICIOUS_SERVER:
            found.append("threat model honest-but-curious: a server that lies is not detected")
        if self.aggregation.protocol in SHARED_KEY:
            found.append(
                f"protocol {self.aggregation.protocol}: every hospital holds the key; the server and any one hospital "
                "together read every hospital's update"
            )
            if self.aggregation.keep_payloads:
                found.append("keep-payloads: so can any one hospital that gets hold of the server's folder, later too")
        elif self.aggregation.max_corrupt == 0:
            found.append("max-corrupt 0: one hospital that colludes with the server is not planned for")
        return tuple(found)


def _is_text(value: Any, right: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no folder or file; write {right}")
    return value


def _fill(tables: dict[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """Add ``defaults`` for what ``tables`` leave out."""
    for table, values in defaults.items():
        given = tables.get(table, {})
        if isinstance(given, Mapping):
            tables[table] = {**{k: v for k, v in values.items() if k.replace("-", "_") not in given}, **given}


def _override(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *path, last = key.strip().split(".")
    if not equals or not last or len(path) > 1:
        raise MisuseError(f"--set {override!r} is not understood; write key=value, such as adapter.strategy=lora")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    table = tables
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise MisuseError(f"--set {override!r}: {part} is a value, not a table")
    table[last] = value


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


def _sentence(cls: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong, with the choices or the nearest name."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # a check of ours, which says all there is to say
        prefix = f"[{first['loc'][0]}] " if first["loc"] else ""
        return f"settings: {prefix}{first['ctx']['error']}."
    *path, last = (str(part) for part in first["loc"] if not isinstance(part, int))
    where = f"[{path[0]}] {last}" if path else last
    if first["type"] == "extra_forbidden":
        table: Any = cls.model_fields[path[0]].annotation if path else cls
        names = [field.alias or name for name, field in table.model_fields.items()]
        return f"settings: {where} is not known.{_hint(last, names)} Choices: {', '.join(names)}."
    if first["type"] == "literal_error":
        table = cls.model_fields[path[0]].annotation if path else cls
        choices = list(table.model_fields[last.replace("-", "_")].annotation.__args__)
        hint = _hint(str(first["input"]), choices)
        return f'settings: {where} = "{first["input"]}" is not known.{hint} Choices: {", ".join(choices)}.'
    return f"settings: {where} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _hint(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
