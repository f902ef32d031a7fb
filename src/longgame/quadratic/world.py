"""The quadratic world: a sequence of regression stages whose population losses are known exactly.

A candidate is a feature vector a and a label y; its loss is ½(aᵀθ − y)² and its gradient a(aᵀθ − y). The examples of
one capability are centred Gaussians a ~ N(0, Σ_k) over a few directions of their own; stage t draws from several
capabilities of unequal size and has one optimum θ*_t. So the excess loss of a sub-skill is ½(θ − θ*_t)ᵀΣ_k(θ − θ*_t),
a stage's loss is the mean over its sub-skills (curvature H_t = mean of its Σ_k), and what any list of picks does to
every later stage is known in closed form (`QuadraticWorld.outcome`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import expm

from longgame.data.examples import Example, Pool, SequenceData, Stage, Task, with_unique_ids
from longgame.errors import DataError, RecipeError
from longgame.recipe import Recipe
from longgame.seeding import generator

_STAGES = ("stage-1", "stage-2", "stage-3", "stage-4", "stage-5")


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """What a quadratic world is made of; two equal specs with one seed give equal worlds."""

    stages: tuple[str, ...] = _STAGES
    ood: tuple[str, ...] = ("ood-rotated", "ood-shifted")
    """OOD tasks: the i-th takes stage i and rotates its space (even i) or shifts its optimum (odd i)."""
    scorers: tuple[str, ...] = ("token_accuracy", "exact_match")
    dimensions: int = 24
    capabilities: int = 8
    """Clusters of the whole world; a stage draws from `sub_skills` of them."""
    sub_skills: int = 6
    rank: int = 4
    """Directions that one capability excites."""
    pool_size: int = 960
    unseen: float = 0.2
    """Share of a pool from capabilities that the base parameters know nothing of."""
    noise: float = 0.05
    """Share of a pool with a damaged label."""
    duplicates: float = 0.1
    """Share of a pool that repeats another candidate."""
    items_per_skill: int = 10
    ood_items_per_skill: int = 6
    proxy_items_per_skill: int = 1
    common: float = 0.7
    """Standard deviation per coordinate of what all optima share."""
    distance: float = 0.6
    """Standard deviation per coordinate of what is a stage's own: how far apart the stages are."""
    label_noise: float = 0.1
    """Standard deviation of a sound label."""
    damage: float = 2.5
    """Standard deviation of a damaged label."""
    rotation: float = 0.6
    """Angle scale of a rotated OOD task, radians."""

    @staticmethod
    def of(recipe: Recipe) -> WorldSpec:
        """The world a recipe asks for; stages and OOD tasks are named by `data.stages` and `data.ood` where given."""
        data = recipe.data
        texts = {task.scorers for task in (*data.stages, *data.ood)} or {("token_accuracy", "exact_match")}
        scorers = {tuple(name for name in names if name != "ends") for names in texts}  # no text, no end of a turn
        if len(scorers) > 1:
            raise RecipeError("the quadratic world scores every task alike; give all stages and OOD sets one `scorers`")
        default = WorldSpec()
        return WorldSpec(
            stages=tuple(stage.name for stage in data.stages) or default.stages,
            ood=tuple(task.name for task in data.ood) or default.ood,
            scorers=scorers.pop(),
            capabilities=recipe.metrics.clusters,
            sub_skills=min(default.sub_skills, recipe.metrics.clusters),
            pool_size=data.pool_size,
            unseen=data.unseen,
            noise=data.noise,
            duplicates=data.duplicates,
            items_per_skill=data.items_per_skill,
            ood_items_per_skill=data.ood_items_per_skill,
            proxy_items_per_skill=recipe.proxy.items_per_skill,
        )


@dataclass(frozen=True, slots=True)
class Population:
    """The exact distribution behind one task."""

    name: str
    skills: tuple[int, ...]
    """Capability of each sub-skill."""
    covariances: Float[np.ndarray, "k d d"]
    optimum: Float[np.ndarray, " d"]

    @property
    def curvature(self) -> Float[np.ndarray, "d d"]:
        """H: mean over the sub-skills."""
        return self.covariances.mean(axis=0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a list of picks leads to."""

    theta: Float[np.ndarray, " d"]
    losses: Mapping[str, float]
    """Excess loss per task (macro mean over sub-skills), with the labels as they are."""
    expected: Mapping[str, float]
    """The same, averaged over the label noise with the picks held fixed."""


def skill_name(capability: int) -> str:
    """Name of a sub-skill."""
    return f"skill-{capability}"


class QuadraticWorld:
    """All stages of one seed with their matrices; immutable once built.

    Rows are world-wide: the candidates of stage 1, 2, …, then proxy, validation and OOD items. ``index`` maps a
    ``sample_id`` to its row; examples are addressed by id everywhere else.

    Attributes:
        features: a, Float[N, d]; labels: y, Float[N]; clean_labels: aᵀθ*; label_sd: sd of y − aᵀθ*.
        prompt_tokens, response_tokens: Int[N], together 8–24; quality: Float[N] in [0, 1].
        capability: Int[N], the cluster of each row; label_of: Int[N], rows that share one label draw share a number.
        base: θ before any stage, the best fit to the sub-skills it has seen, Float[d].
        populations: task name → its exact distribution. sequence: what the protocol walks.
    """

    def __init__(self, spec: WorldSpec, seed: int) -> None:
        _check(spec)
        self.spec, self.seed = spec, seed
        self._geometry()
        self._draw()

    def _geometry(self) -> None:
        spec = self.spec
        rng = generator(self.seed, "quadratic", "geometry")
        total = spec.capabilities
        unseen = 0 if spec.unseen <= 0 else total if spec.unseen >= 1 else max(1, round(total / 4))
        self.unseen_capabilities = tuple(range(total - unseen, total))
        covariances = self._covariances(rng)
        self.populations: dict[str, Population] = {}
        self.weights: dict[str, Float[np.ndarray, " k"]] = {}
        common = spec.common * rng.standard_normal(spec.dimensions)
        for name in spec.stages:
            skills, self.weights[name] = self._mixture(rng)
            optimum = common + spec.distance * rng.standard_normal(spec.dimensions)
            self.populations[name] = Population(name, skills, covariances[list(skills)], optimum)
        for i, name in enumerate(spec.ood):
            origin = self.populations[spec.stages[i % len(spec.stages)]]
            self.populations[name] = self._shifted(name, origin, rotate=i % 2 == 0, rng=rng)
        self._stacked = np.concatenate([p.covariances for p in self.populations.values()])
        self._optima = np.concatenate([np.tile(p.optimum, (len(p.skills), 1)) for p in self.populations.values()])
        ends = np.cumsum([0, *(len(p.skills) for p in self.populations.values())])
        self._slices = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(self.populations)}
        self.base = self._pretrained()

    def _covariances(self, rng: np.random.Generator) -> Float[np.ndarray, "c d d"]:
        """Σ_k of every capability: a few strong directions; unseen ones live in coordinates of their own."""
        d, total = self.spec.dimensions, self.spec.capabilities
        unseen = len(self.unseen_capabilities)
        reserved = 0 if unseen == 0 else d if unseen == total else d // 3
        covariances = np.zeros((total, d, d))
        for k in range(total):
            block = np.arange(d - reserved, d) if k in self.unseen_capabilities else np.arange(d - reserved)
            rank = min(self.spec.rank, len(block))
            frame = np.linalg.qr(rng.standard_normal((len(block), rank)))[0]
            local = (frame * np.linspace(1.5, 0.5, rank) ** 2) @ frame.T + 0.01 * np.eye(len(block))
            covariances[k][np.ix_(block, block)] = local
        return covariances

    def _mixture(self, rng: np.random.Generator) -> tuple[tuple[int, ...], Float[np.ndarray, " k"]]:
        """Capabilities of a stage and their shares of its pool: seen ones ∝ 1, 1/2, 1/3 …, unseen ones alike."""
        spec = self.spec
        seen = np.setdiff1d(np.arange(spec.capabilities), self.unseen_capabilities)
        wanted = min(spec.sub_skills, spec.capabilities)
        new = np.asarray(self.unseen_capabilities[: wanted - min(len(seen), 1)], dtype=np.int64)
        known = np.sort(rng.permutation(seen)[: wanted - len(new)])
        size = np.concatenate([rng.permutation(1 / np.arange(1, len(known) + 1)), np.ones(len(new))])
        if len(known) and len(new):
            size[: len(known)] *= (1 - spec.unseen) / size[: len(known)].sum()
            size[len(known) :] *= spec.unseen / len(new)
        return tuple(int(k) for k in (*known, *new)), size / size.sum()

    def _shifted(self, name: str, origin: Population, rotate: bool, rng: np.random.Generator) -> Population:
        spec = self.spec
        if not rotate:
            moved = origin.optimum + 0.5 * spec.distance * rng.standard_normal(spec.dimensions)
            return Population(name, origin.skills, origin.covariances, moved)
        skew = np.triu(rng.standard_normal((spec.dimensions, spec.dimensions)), 1) / np.sqrt(spec.dimensions)
        turn = expm(spec.rotation * (skew - skew.T))
        return Population(name, origin.skills, turn @ origin.covariances @ turn.T, turn @ origin.optimum)

    def _pretrained(self) -> Float[np.ndarray, " d"]:
        """θ before any stage: the best fit to all stages' seen sub-skills, zero where nothing was seen."""
        matrix, target = 1e-6 * np.eye(self.spec.dimensions), np.zeros(self.spec.dimensions)
        for name in self.spec.stages:
            population = self.populations[name]
            for k, covariance in zip(population.skills, population.covariances, strict=True):
                if k not in self.unseen_capabilities:
                    matrix += covariance
                    target += covariance @ population.optimum
        return np.linalg.solve(matrix, target)

    def _draw(self) -> None:
        spec = self.spec
        blocks = [self._block(name, "pool", spec.pool_size) for name in spec.stages]
        blocks += [self._block(name, "proxy", spec.proxy_items_per_skill) for name in spec.stages]
        blocks += [self._block(name, "task", spec.items_per_skill) for name in spec.stages]
        blocks += [self._block(name, "task", spec.ood_items_per_skill) for name in spec.ood]
        self.features = np.concatenate([block["features"] for block in blocks])
        self.labels = np.concatenate([block["labels"] for block in blocks])
        self.clean_labels = np.concatenate([block["clean"] for block in blocks])
        self.label_sd = np.concatenate([block["label_sd"] for block in blocks])
        self.quality = np.concatenate([block["quality"] for block in blocks])
        self.capability = np.concatenate([block["capability"] for block in blocks])
        tokens = np.concatenate([block["tokens"] for block in blocks])
        self.prompt_tokens, self.response_tokens = tokens // 2, tokens - tokens // 2
        offsets = np.cumsum([0, *(len(block["labels"]) for block in blocks)])
        self.label_of = np.concatenate(
            [block["origin"] + offset for block, offset in zip(blocks, offsets[:-1], strict=True)]
        )
        examples: list[tuple[Example, ...]] = [block["examples"] for block in blocks]
        self.index: Mapping[str, int] = {
            example.sample_id: row for row, example in enumerate(example for block in examples for example in block)
        }
        self.candidates = len(spec.stages) * spec.pool_size
        n = len(spec.stages)
        tasks = [
            Task(name, examples[2 * n + i], "stage" if i < n else "ood", spec.scorers)
            for i, name in enumerate((*spec.stages, *spec.ood))
        ]
        stages = tuple(Stage(name, examples[i], tasks[i], examples[n + i]) for i, name in enumerate(spec.stages))
        self.sequence = SequenceData("quadratic", stages, tuple(tasks[n:])).with_pools(self.pool)

    def _block(self, name: str, part: str, count: int) -> dict[str, Any]:
        """Draw the pool of a stage (``count`` rows, noise, copies) or its clean items (``count`` per sub-skill)."""
        spec, population = self.spec, self.populations[name]
        rng = generator(self.seed, "quadratic", name, part)
        skills = np.arange(len(population.skills))
        pool = part == "pool"
        local = rng.choice(skills, size=count, p=self.weights[name]) if pool else np.repeat(skills, count)
        n = len(local)
        # eigh of a covariance that is singular outside its block: clip the rounding below zero
        values, vectors = np.linalg.eigh(population.covariances)
        roots = vectors * np.sqrt(np.clip(values, 0, None))[:, None, :]
        features = np.einsum("nij,nj->ni", roots[local], rng.standard_normal((n, spec.dimensions)))
        noisy = rng.random(n) < spec.noise if pool else np.zeros(n, dtype=bool)
        label_sd = np.where(noisy, spec.damage, spec.label_noise)
        clean = features @ population.optimum
        labels = clean + label_sd * rng.standard_normal(n)
        quality = np.where(noisy, rng.beta(3, 4, n), rng.beta(6, 2.5, n))
        tokens = rng.integers(8, 25, n)
        origin = np.arange(n)
        if pool:
            copies = rng.permutation(n)[: round(spec.duplicates * n)]
            originals = np.setdiff1d(np.arange(n), copies)
            origin[copies] = rng.choice(originals, size=len(copies))
        examples = []
        for row in origin:
            skill = skill_name(population.skills[local[row]])
            prompt = f"seed {self.seed}, {name}, {part} item {row}: predict y for a draw of {skill}"
            fields = {"skill": skill, "quality": float(quality[row]), "source": "quadratic", "noisy": bool(noisy[row])}
            examples.append(Example.make(prompt, f"{labels[row]:.6f}", **fields))
        return {
            "features": features[origin],
            "labels": labels[origin],
            "clean": clean[origin],
            "label_sd": label_sd[origin],
            "quality": quality[origin],
            "tokens": tokens[origin],
            "capability": np.asarray(population.skills)[local[origin]],
            "origin": origin,
            "examples": with_unique_ids(examples),
        }

    def pool(self, examples: Sequence[Example]) -> Pool:
        """Examples with their token counts and matrices (``info``: row, features, label).

        Raises:
            DataError: an example that is not of this world.
        """
        rows = self.rows([example.sample_id for example in examples])
        empty = np.zeros(0, dtype=np.int64)
        info = {"row": rows, "features": self.features[rows], "label": self.labels[rows]}
        return Pool(tuple(examples), (empty,) * len(rows), self.prompt_tokens[rows], self.response_tokens[rows], info)

    def rows(self, ids: Sequence[str]) -> Int[np.ndarray, " n"]:
        """World rows of these examples.

        Raises:
            DataError: an id that is not of this world.
        """
        try:
            return np.fromiter((self.index[name] for name in ids), dtype=np.int64, count=len(ids))
        except KeyError as error:
            raise DataError(
                f"example {error.args[0]} is not of the quadratic world of seed {self.seed}; "
                "take the examples from build_quadratic_sequence() with the same recipe and seed."
            ) from error

    def sub_skill_losses(self, theta: Float[np.ndarray, " d"]) -> dict[str, Float[np.ndarray, " k"]]:
        """Exact excess loss ½(θ − θ*)ᵀΣ_k(θ − θ*) of every sub-skill of every task, in order of ``skills``."""
        away = theta[None, :] - self._optima
        losses = 0.5 * np.einsum("md,mde,me->m", away, self._stacked, away, optimize=True)
        return {name: np.maximum(losses[part], 0.0) for name, part in self._slices.items()}

    def losses(self, theta: Float[np.ndarray, " d"]) -> dict[str, float]:
        """Exact excess loss of every task: mean over its sub-skills."""
        return {name: float(values.mean()) for name, values in self.sub_skill_losses(theta).items()}

    def outcome(
        self,
        batches: Sequence[Sequence[str]],
        rates: Float[np.ndarray, " steps"],
        start: Float[np.ndarray, " d"] | None = None,
        weight_decay: float = 0.0,
    ) -> Outcome:
        """What these picks, learned in this order, do to every task: the true long-horizon effect, in closed form.

        A step on batch S is the affine map θ ← ((1 − ηw)I − η/n Σ aaᵀ)θ + η/n Σ a y, so θ at the end is linear in the
        labels; ``expected`` adds ½ tr(H Cov θ) for their noise (copies share one draw).

        Args:
            batches: ids per optimiser step, stages one after another.
            rates: learning rate η of each step.
            start: θ at the start (default: the base).
        """
        if len(batches) != len(rates):
            raise DataError(f"{len(batches)} batches need as many learning rates; {len(rates)} were given.")
        rows = [self.rows(batch) for batch in batches]
        used = np.unique(self.label_of[np.concatenate(rows)]) if rows else np.zeros(0, dtype=np.int64)
        theta = np.array(self.base if start is None else start, dtype=np.float64)
        mean = theta.copy()
        spread = np.zeros((len(theta), len(used)))  # ∂θ/∂(label noise in units of its sd)
        for batch, rate in zip(rows, rates, strict=True):
            a, n = self.features[batch], len(batch)
            linear = (1 - rate * weight_decay) * np.eye(len(theta)) - rate / n * a.T @ a
            theta = linear @ theta + rate / n * a.T @ self.labels[batch]
            mean = linear @ mean + rate / n * a.T @ self.clean_labels[batch]
            spread = linear @ spread
            columns = np.searchsorted(used, self.label_of[batch])
            np.add.at(spread.T, columns, rate / n * a * self.label_sd[batch][:, None])
        covariance = spread @ spread.T
        expected = {
            name: value + 0.5 * float(np.sum(self.populations[name].curvature * covariance))
            for name, value in self.losses(mean).items()
        }
        return Outcome(theta, self.losses(theta), expected)


def _check(spec: WorldSpec) -> None:
    names = [*spec.stages, *spec.ood]
    if len(set(names)) != len(names):
        raise RecipeError(f"stages and OOD sets of a quadratic world need different names; seen: {names}.")
    if not spec.stages:
        raise RecipeError("a quadratic world needs at least one stage.")
    if spec.dimensions < 6:
        raise RecipeError(f"a quadratic world needs at least 6 dimensions; seen: {spec.dimensions}.")


@functools.lru_cache(maxsize=2)
def build_world(spec: WorldSpec, seed: int) -> QuadraticWorld:
    """The world of a seed; the last two are kept, since learner and sequence of a seed share one."""
    return QuadraticWorld(spec, seed)
