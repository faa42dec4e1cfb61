"""Refit one decoder layer after the other, as `repair` says: only the layer at hand and a copy of it are held."""

import copy
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from accelerate.hooks import add_hook_to_module
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core.anatomy import Anatomy, Layer, exact, weight_of
from ..core.plans import Plan
from ..core.sums import Batch
from ..core.surgery import Cut, _kept, cuts_of, narrowed
from ..files.arguments import misfit
from .hidden_size import Turn
from .layerwise import Walk, weights_change
from .normal_equations import Normal, eliminate
from .projections import ends, projection, readers, residual_scale, stream, watch, with_bias
from .taylor import PARTS, Metric

LITTLE = 1e-3  # share of the mean that each direction of a metric has at least
STEP = 4096  # tokens of a step of polishing
RATE = 1e-2  # of its first step, in root mean squares of each matrix; it falls to 0 in a straight line


@dataclass(frozen=True)
class Fit:
    """How one output projection, or an MLP, was fitted. Errors are ‖Y − X Wᵀ‖² / ‖Y‖² over the calibration tokens."""

    layer: int
    part: str  # "heads", "neurons"; "into heads", "into neurons": the matrices before; "MLP": all of it, polished
    ridge: float
    before: float
    after: float


@dataclass(frozen=True)
class Options:
    """How to repair, as in `repair`."""

    reselect: bool = False
    sequential: bool = True
    refit_inputs: bool = False
    ridge: float | None = None
    polish: int = 0

    def check(self, anatomy: Anatomy, hidden_size: int | None) -> None:
        """Refuse values that are none, and what the dense model's own pass, or its family, cannot do."""
        if wrong := misfit(self):
            raise ValueError(f"{wrong}.")
        if (self.refit_inputs or self.polish or hidden_size is not None) and not self.sequential:
            raise ValueError(
                "refit_inputs=True, polish=… and hidden_size=… need sequential=True: they follow what the pruned model "
                "itself reads."
            )
        if self.polish < 0:
            raise ValueError(f"polish={self.polish} must be at least 0: so many steps polish the MLP of each layer.")
        if (self.ridge or 0) < 0:
            raise ValueError(f"ridge={self.ridge} must be at least 0; left out, it is chosen for each projection.")
        if self.polish and (anatomy.family.no_neurons or not _mlp(anatomy)):
            why = anatomy.family.no_neurons or "its layers hold the matrices of the MLP without a module for it"
            raise ValueError(f"The MLPs of a {anatomy.model.config.model_type} cannot be polished: {why}.")


@dataclass(frozen=True)
class Wanted:
    """What a dense layer makes of a batch."""

    entered: Tensor
    inputs: dict[str, Tensor]  # of each output projection, where ours are not the ones that count
    outputs: dict[str, Tensor]  # of each output projection
    read: dict[nn.Module, Tensor]  # outputs of the matrices before them, where those are refitted


def _mlp(anatomy: Anatomy) -> str:
    """The name of a layer's MLP; empty where it has no module of its own."""
    return anatomy.family.neurons_out.rpartition(".")[0]


def _left(mlp: nn.Module, x: Tensor, y: Tensor) -> float:
    """‖y − mlp(x)‖² / ‖y‖²."""
    parts = zip(x.split(STEP), y.split(STEP), strict=True)
    return sum(float((b - mlp(a)).square().sum()) for a, b in parts) / max(float(y.square().sum()), 1e-30)


def _descend(
    mlp: nn.Module,
    x: Float[Tensor, "tokens hidden"],
    y: Float[Tensor, "tokens hidden"],
    root: Float[Tensor, "hidden hidden"],
    steps: int,
) -> None:
    """Steps of Adam on ‖(y − mlp(x)) root‖², each on the next `STEP` tokens of a fixed random order."""
    moved = {p: float(p.detach().square().mean().sqrt()) for p in mlp.parameters()}
    optimizer = torch.optim.Adam([dict(params=[p]) for p in moved], betas=(0.9, 0.95))
    drawn = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(x), generator=drawn) for _ in range(1 + steps * STEP // len(x))]).to(x.device)
    with torch.enable_grad():
        for k in range(steps):
            for group, size in zip(optimizer.param_groups, moved.values(), strict=True):
                group["lr"] = RATE * size * (1 - k / steps)
            rows = order[k * STEP : (k + 1) * STEP]
            # the difference first, so that under autocast no large numbers are rounded before they cancel
            left, all_of_it = (y[rows] - mlp(x[rows])) @ root, y[rows] @ root
            lost = left.float().square().sum() / all_of_it.float().square().sum().clamp(min=1e-30)
            optimizer.zero_grad()
            lost.backward()
            optimizer.step()


class Refits:
    """Refits layer after layer. Only the layer asked for needs its weights, beside what is outside the layers."""

    def __init__(
        self,
        anatomy: Anatomy,
        plan: Plan,
        batches: Sequence[Batch],
        options: Options,
        turn: Turn | None = None,
        metric: Metric | None = None,
    ) -> None:
        if not any(bool(batch["attention_mask"].any()) for batch in batches):
            raise ValueError("The calibration batches hold no tokens: repair needs some text; see amp.calibration.")
        self.anatomy, self.options, self.turn, self.metric = anatomy, options, turn, metric
        self.plan = replace(plan, heads=list(plan.heads), neurons=list(plan.neurons))
        directions = None if turn is None else turn.directions
        self.dense, self.ours = Walk(anatomy, batches), Walk(anatomy, batches, directions)  # two streams, one model
        self.masks = [batch["attention_mask"].bool() for batch in batches]
        self.fits: list[Fit] = []
        self.short = ""  # the first projection with fewer tokens than inputs

    @torch.no_grad()
    @weights_change()
    def layer(self, i: int) -> dict[str, Tensor]:
        """Refit layer i's attention, then its MLP on what that now gives; the layers come in their order.

        Returns:
            The refitted tensors, sliced if it is asked but not yet cut, by their names in the dense model; of a sliced
            layer all. None if the layer goes.
        """
        if i not in self.plan.kept_layers:
            self._pass_by(i)
            return {}
        prefix = f"{self.anatomy.family.layers}.{i}."
        block, wanted = self._block(i), self._wanted(i)
        ours = self.anatomy.layer(i, block)
        parts = self._parts(ours)
        changed = [projection(ours, part) for part in parts]
        with ExitStack() as hooks:
            for handle in narrowed(self.anatomy, self.plan, i, block):
                hooks.callback(handle.remove)
            for part in parts:
                if self.options.refit_inputs and readers(ours, part):
                    self._read(i, part, block, wanted)
                    changed += readers(ours, part)
                normal, seen = self._equations(i, part, block, wanted)
                self._refit(i, part, ours, normal)
                if seen:
                    self._polish(i, block, seen)
                    changed += readers(ours, part)
            if self.options.sequential:
                with self.ours.only(i, block, go_on=True):
                    for b in range(len(self.masks)):
                        self.ours.step(b)
        if self.turn is not None:
            return {f"{prefix}{n}": p.detach() for n, p in block.named_parameters()}
        names = {module: name for name, module in block.named_modules()}
        return {f"{prefix}{names[m]}.{n}": p.detach() for m in changed for n, p in m.named_parameters()}

    def _parts(self, layer: Layer) -> list[str]:
        """What the layer has of the two: some have no attention, and of experts the projection is not seen."""
        return [part for part in PARTS if projection(layer, part) is not None]

    def _block(self, i: int) -> nn.Module:
        """A copy of layer i, sliced if it is asked."""
        prefix = f"{self.anatomy.family.layers}.{i}."
        dense = self.anatomy.model.get_submodule(prefix[:-1])
        if self.turn is None:
            return copy.deepcopy(dense)
        config = copy.deepcopy(self.anatomy.model.config)
        config.hidden_size, config.head_dim = self.turn.hidden, self.anatomy.head_dim
        with torch.device("meta"):
            block: nn.Module = type(dense)(config, i)  # type: ignore[call-arg]
        whole = {f"{prefix}{name}": tensor.detach() for name, tensor in dense.named_parameters()}
        block.load_state_dict({n.removeprefix(prefix): t for n, t in self.turn(whole).items()}, assign=True)
        if hasattr(dense, "_hf_hook"):  # a deep copy has accelerate's hooks, a new one needs them
            add_hook_to_module(block, copy.deepcopy(dense._hf_hook))
        return block.eval()

    def warn(self) -> None:
        """Say so if there was too little text."""
        if self.short:
            warnings.warn(
                f"Fewer calibration tokens than inputs of a projection ({self.short}): the rest is left to the ridge; "
                "give more text.",
                stacklevel=4,
            )

    def _pass_by(self, i: int) -> None:
        """A layer that goes changes nothing in the pruned model's stream, only in the dense one's."""
        with self.dense.only(i, go_on=True):
            for b in range(len(self.masks)):
                entered, _ = self.dense.step(b)
                if i == 0:
                    self.ours.hidden[b] = self.ours.turned(entered)

    def _wanted(self, i: int) -> list[Wanted]:
        """What the dense layer i makes of each batch, in one pass; held until the layer is done."""
        dense, found = self.anatomy.layer(i), []
        reading = [m for part in self._parts(dense) for m in readers(dense, part)] if self.options.refit_inputs else []
        for b in range(len(self.masks)):
            with self.dense.only(i, go_on=True), watch(dense) as seen, ends({m: m for m in reading}) as read:
                entered, _ = self.dense.step(b)
            inputs = {} if self.options.sequential else {part: x for part, (x, _) in seen.items()}
            outputs = {part: output for part, (_, output) in seen.items()}
            found.append(Wanted(entered, inputs, outputs, {module: output for module, (_, output) in read.items()}))
        return found

    def _equations(
        self, i: int, part: str, block: nn.Module, wanted: list[Wanted]
    ) -> tuple[Normal, list[tuple[Tensor, Tensor]]]:
        """X and Y of an output projection; and, if it is to be polished, what the MLP reads and Y of each batch.

        Y is what the dense stream is after it, less what ours is before it. Without a scale it is the projection's own
        dense output: Gemma 2 norms what it adds, and of experts the output is not seen.
        """
        ours, sequential = self.anatomy.layer(i, block), self.options.sequential
        scale = residual_scale(self.anatomy) if sequential else 0.0
        # "heads" before "neurons"; in a block that runs both at once the order is free
        earlier = ("heads",) if scale and part == "neurons" else ()
        module = projection(ours, part)
        normal, seen = Normal(module.bias is not None), list[tuple[Tensor, Tensor]]()
        polished = readers(ours, part)[:1] if self.options.polish and part == "neurons" else []
        for mask, dense, b in zip(self.masks, wanted, range(len(wanted)), strict=True):
            if sequential:
                with self.ours.only(i, block), ends({m: m for m in polished}) as read:
                    entered, x, added = self.ours.until(b, module, *(projection(ours, other) for other in earlier))
            else:
                x = dense.inputs[part]
            if scale:
                after = stream(dense.entered, [dense.outputs[p] for p in (*earlier, part)], scale)
                before = stream(entered, added, scale)
                y = (self.ours.turned(after) - before.to(after.device)) / scale
            else:
                y = self.ours.turned(exact(dense.outputs[part].reshape_as(dense.entered)))
            x = x.reshape(*mask.shape, -1)
            normal.add(x[mask.to(x.device)], y[mask.to(y.device)])
            if polished:
                real = read[polished[0]][0].reshape(*mask.shape, -1)
                seen.append((real[mask.to(real.device)].float(), y[mask.to(y.device)].float()))
        return normal, seen

    def _polish(self, i: int, block: nn.Module, seen: list[tuple[Tensor, Tensor]]) -> None:
        """Move all matrices of the MLP together, by gradients of the error that is left of what it is to write."""
        x, y = (torch.cat(part) for part in zip(*seen, strict=True))
        y, root = y.to(x.device), torch.eye(y.shape[1])
        if self.metric is not None:
            root = self._root(self.metric[i]["neurons"])
        small, cut = self._small_mlp(i, block)
        _descend(small, x, y, root.to(x), self.options.polish)
        self.fits.append(Fit(i, "MLP", 0.0, self.fits[-1].after, _left(small, x, y)))
        whole = block.get_submodule(_mlp(self.anatomy))
        for name, parameter in small.named_parameters():
            axis, kept = cut.get(name, (0, None))
            old = whole.get_parameter(name)
            old.copy_(parameter) if kept is None else old.index_copy_(axis, kept.to(old.device), parameter.to(old))

    def _small_mlp(self, i: int, block: nn.Module) -> tuple[nn.Module, dict[str, Cut]]:
        """A copy of the layer's MLP in float32 without the neurons that go, and what of each of its tensors stays."""
        prefix = f"{self.anatomy.family.layers}.{i}.{_mlp(self.anatomy)}."
        cut = {name.removeprefix(prefix): how for name, how in cuts_of(self.anatomy, self.plan, i).items()}
        small = copy.deepcopy(block.get_submodule(_mlp(self.anatomy))).float()
        for name, parameter in small.named_parameters():
            if name in cut:
                axis, kept = cut[name]
                parameter.data = parameter.data.index_select(axis, kept.to(parameter.device))
        for module in small.modules():
            module._forward_hooks.clear()  # of `narrowed`: what it leaves out is gone here
            if isinstance(module, Conv1D):
                module.nf = module.weight.shape[1]  # it reads its width there
        return small.requires_grad_(), cut

    def _read(self, i: int, part: str, block: nn.Module, wanted: list[Wanted]) -> None:
        """Refit the matrices before the heads or neurons together, as all read the same."""
        dense, ours = (readers(self.anatomy.layer(i, of), part) for of in (None, block))
        normal = Normal(ours[0].bias is not None)
        for b, mask in enumerate(self.masks):
            with self.ours.only(i, block):
                _, x, _ = self.ours.until(b, ours[0])
            real = mask.to(x.device)
            y = torch.cat([wanted[b].read[m].reshape(*mask.shape, -1)[real] for m in dense], dim=-1)
            normal.add(x.reshape(*mask.shape, -1)[real], y)
        prior = torch.cat([with_bias(exact(weight_of(module)), module.bias) for module in ours])
        fitted = self._solved(i, f"into {part}", normal, prior)
        for module, rows in zip(ours, fitted.split([len(weight_of(module)) for module in ours]), strict=True):
            weight_of(module).copy_(rows[:, :-1] if normal.bias else rows)
            if normal.bias:
                module.bias.copy_(rows[:, -1])

    @torch.no_grad()
    def head(self) -> dict[str, Tensor]:
        """Refit the output head to give the dense model's logits from what the pruned model's last norm gives.

        Returns:
            It alone, by its name; nothing if it is tied to the embedding, which stays as it is.
        """
        if not self.options.refit_inputs:
            return {}
        model = self.anatomy.model
        head, names = model.get_output_embeddings(), {module: name for name, module in model.named_modules()}
        weight, norm = head.weight, None
        if self.turn is not None:
            last = self.turn.stream.last
            whole = {f"{last}.weight": model.get_parameter(f"{last}.weight"), f"{names[head]}.weight": weight}
            turned = self.turn({name: tensor.detach() for name, tensor in whole.items()})
            norm, weight = copy.deepcopy(model.get_submodule(last)), turned[f"{names[head]}.weight"]
            norm.weight.data = turned[f"{last}.weight"]
        elif weight is model.get_input_embeddings().weight:
            return {}
        normal = Normal()
        for b, mask in enumerate(self.masks):
            y = self.dense.last(b)
            x, real = self.ours.last(b) if norm is None else norm(self.ours.hidden[b]), mask.to(y.device)
            normal.add(x[real], y[real])
        normal.xy = [xy @ exact(head.weight).T for xy in normal.xy]
        prior = exact(weight)
        ridge = normal.ridge(prior) if self.options.ridge is None else self.options.ridge
        return {f"{names[head]}.weight": normal.solve(prior, ridge).to(weight)}

    def _solved(self, i: int, part: str, normal: Normal, prior: Tensor) -> Tensor:
        ridge = normal.ridge(prior) if self.options.ridge is None else self.options.ridge
        fitted = normal.solve(prior, ridge)
        self.fits.append(Fit(i, part, ridge, normal.error(prior), normal.error(fitted)))
        return fitted

    def _refit(self, i: int, part: str, ours: Layer, normal: Normal) -> None:
        module, heads = projection(ours, part), part == "heads"
        weight, count = weight_of(module), weight_of(module).shape[1]
        dense = with_bias(exact(weight), module.bias)
        rows = "query" if heads else "neurons"
        some_go = len(_kept(self.anatomy, self.plan, i)[rows]) < count
        spanned = dict(self.anatomy.family.norms).values() if self.anatomy.family.spanning else ()
        if self.options.reselect and some_go and rows not in spanned:
            self._choose(i, heads, normal, dense)
        kept = _kept(self.anatomy, self.plan, i)[rows].to(weight.device)
        columns = kept.to(dense.device)
        columns = columns if module.bias is None else torch.cat([columns, columns.new_tensor([count])])
        fitted = self._solved(i, part, normal.of(columns), dense[:, columns])
        weight.zero_()
        weight[:, kept] = fitted[:, : len(kept)].to(weight)
        if module.bias is not None:
            module.bias.copy_(fitted[:, -1])
        if normal.tokens < len(kept) and not self.short:
            self.short = f"layer {i}, {part}: {normal.tokens} tokens, {len(kept)} inputs"

    def _root(self, felt: Tensor) -> Tensor:
        """The square root of a metric, of the directions that stay; what it does not feel counts a little too."""
        if self.turn is not None:
            felt = self.turn.directions.T.to(felt) @ felt @ self.turn.directions.to(felt)
        values, vectors = torch.linalg.eigh(felt)
        values = values.clamp(min=0)
        return (vectors * (values + LITTLE * values.mean()).sqrt()) @ vectors.T

    def _choose(self, i: int, heads: bool, normal: Normal, prior: Tensor) -> None:
        a, plan = self.anatomy, self.plan
        xx, xy = normal.centred()
        prior = prior[:, : len(xx)]
        if self.metric is not None:
            root = self._root(self.metric[i]["heads" if heads else "neurons"].to(xx.device))
            xy, prior = xy @ root, root @ prior
        if not heads:
            pools = torch.zeros(a.neurons, dtype=torch.long, device=xx.device)
            plan.neurons[i] = eliminate(xx, xy, prior, 1, pools, len(plan.neurons[i]))
        elif plan.unit == "groups":
            pools = torch.zeros(a.groups, dtype=torch.long, device=xx.device)
            stay = eliminate(xx, xy, prior, a.group_size * a.head_dim, pools, len(plan.groups(i)))
            plan.heads[i] = [g * a.group_size + j for g in stay for j in range(a.group_size)]
        else:
            pools = torch.arange(a.heads, device=xx.device) // a.group_size
            plan.heads[i] = eliminate(xx, xy, prior, a.head_dim, pools, len(plan.heads[i]) // a.groups)
