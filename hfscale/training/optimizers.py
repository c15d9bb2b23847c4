"""Optimizers that upstream's `optim` does not know: Muon for a model's hidden matrices, and weight
decay that is cautious.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.training_args import OptimizerNames

from hfscale.arguments import OptimizerArguments
from hfscale.planning.flops import FUSED
from hfscale.process import InputError, launched_engine
from hfscale.training.training_args import has_bf16_units

# Newton and Schulz's iteration with the coefficients of https://kellerjordan.github.io/posts/muon/,
# as in torch.optim.Muon: singular values end between 0.7 and 1.2, in few steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
# Weights (experts x outputs x inputs) and linear layers of a mixture of experts, by the end of
# their names. A router chooses between experts: its rows are no directions of one space.
EXPERTS = ("gate_up_proj", "down_proj", "up_proj")
ROUTERS = ("gate", "router", "shared_expert_gate")


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Each matrix with its singular values moved to about 1 (batch x rows x columns).

    `dtype` is that of the products; bfloat16 is enough.
    """
    a, b, c = NEWTON_SCHULZ
    rows, columns = matrices.shape[-2:]
    x = matrices.to(dtype)
    if rows > columns:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    if rows > columns:
        x = x.mT
    return x.to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups with `num_matrices`, AdamW for the others.

    Muon (Jordan et al., 2024): the momentum of a matrix is made orthogonal, so that a step turns
    all its directions alike. As `torch.optim.Muon` computes it, but that all matrices of a shape go
    through at once, and that a weight that holds several is taken apart.

    Args:
        params: groups as torch takes them. Those of Muon have `num_matrices` (of each weight, side
            by side along its outputs) and `outputs_dim` (0 for Linear, 1 for Conv1D). A weight of
            three dimensions holds so many for each of its experts.
        lr, weight_decay: of groups that do not name their own.
        betas, eps: AdamW's.
        momentum: Muon's (Nesterov's).
        cautious: weights decay only where the step draws them toward zero too (Chen et al. 2025,
            arXiv:2510.12402): with a step -lr u, where u and the weight do not differ in sign.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        momentum: float = 0.95,
        cautious: bool = False,
    ):
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "cautious": cautious,
            "num_matrices": 0,
            "outputs_dim": 0,
        }
        super().__init__(params, defaults)
        self.product_dtype = _product_dtype(self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; returns the closure's loss, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["num_matrices"] == 0:
                self._step_adamw(group)
        self._step_muon([group for group in self.param_groups if group["num_matrices"]])
        return loss

    def _step_adamw(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
        beta1, beta2 = group["betas"]
        weight_decay = group["weight_decay"]
        if group["cautious"] and weight_decay:
            for param in params:
                # The step has the sign of the averaged gradient.
                step = self.state[param]["exp_avg"].lerp(param.grad, 1 - beta1)
                _decay(param, step, group)
            weight_decay = 0.0
        adamw(
            params,
            [param.grad for param in params],
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            [self.state[param]["step"] for param in params],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=weight_decay,
            eps=group["eps"],
            maximize=False,
        )

    def _step_muon(self, groups: list[dict[str, Any]]) -> None:
        # All matrices of one shape go through at once, whatever weight they are of.
        weights_by_shape = defaultdict(list)
        for group, param in _with_gradient(groups):
            weights_by_shape[_matrix_shape(group, param)].append((group, param))
        for weights in weights_by_shape.values():
            matrices = orthogonalize(self._directions(weights), self.product_dtype)
            counts = [group["num_matrices"] * param.shape[:-2].numel() for group, param in weights]
            for (group, param), turned in zip(weights, matrices.split(counts), strict=True):
                dim = group["outputs_dim"]
                outputs, inputs = turned.shape[1 + dim], turned.shape[2 - dim]
                step_size = group["lr"] * math.sqrt(max(1, outputs / inputs))
                update = _placed_like(param, _joined(turned, group, param))
                _decay(param, update, group)
                param.add_(update, alpha=-step_size)

    def _directions(self, weights: list[tuple[dict[str, Any], torch.nn.Parameter]]) -> torch.Tensor:
        """What is to be made orthogonal (matrices x rows x columns)."""
        parts: list[torch.Tensor] = []
        for group, param in weights:
            direction = _whole(self._nesterov(param, group["momentum"]))
            side_by_side = direction.chunk(group["num_matrices"], group["outputs_dim"] - 2)
            parts += [matrices.reshape(-1, *matrices.shape[-2:]) for matrices in side_by_side]
        return torch.cat(parts)

    def _nesterov(self, param: torch.Tensor, momentum: float) -> torch.Tensor:
        """The gradient averaged over the steps, looking one step ahead."""
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer = state["momentum_buffer"]
        gradient = param.grad
        assert gradient is not None, "parameters without one were left out"
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def _decay(param: torch.Tensor, step: torch.Tensor, group: dict[str, Any]) -> None:
    """Weight decay before a step that is going to be subtracted, of which the sign counts."""
    decayed = group["lr"] * group["weight_decay"]
    if not group["cautious"]:
        param.mul_(1 - decayed)
        return
    agrees = step.sign() * param.sign() >= 0  # of the signs: a product of small numbers can be 0
    param.mul_(1 - decayed * agrees.to(param.dtype))


def _product_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, which is enough, where the device multiplies it faster."""
    return torch.bfloat16 if has_bf16_units(device.type == "cpu") else torch.float32


def _matrix_shape(group: dict[str, Any], param: torch.Tensor) -> tuple[int, ...]:
    """Of one of the matrices that the weight holds."""
    sizes = list(param.shape[-2:])
    sizes[group["outputs_dim"]] //= group["num_matrices"]
    return tuple(sizes)


def _joined(matrices: torch.Tensor, group: dict[str, Any], param: torch.Tensor) -> torch.Tensor:
    """The matrices (count x rows x columns) as the weight holds them, of each expert side by
    side.
    """
    parts = matrices.chunk(group["num_matrices"])
    experts = param.shape[:-2]
    return torch.cat(
        [part.reshape(*experts, *part.shape[-2:]) for part in parts], group["outputs_dim"] - 2
    )


def _with_gradient(
    groups: Iterable[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], torch.nn.Parameter]]:
    for group in groups:
        for param in group["params"]:
            if param.grad is not None:
                yield group, param


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that FSDP2 has spread over ranks, put together; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placed_like(param: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor as this rank's share of it, where the parameter is spread over ranks."""
    if not isinstance(param, DTensor):
        return tensor
    # None: each rank has all of it and cuts its own share.
    return distribute_tensor(tensor, param.device_mesh, param.placements, src_data_rank=None)


class MuonForModel:
    """Makes `MuonAdamW` for a model, in the form that Trainer's `optimizer_cls_and_kwargs` takes:
    a class, and what its instance is called with.
    """

    def __call__(
        self,
        model: torch.nn.Module,
        *,
        muon_learning_rate: float | None,
        muon_momentum: float,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        cautious: bool = False,
    ) -> MuonAdamW:
        """Hidden matrices get Muon; embeddings, the output layer and vectors get AdamW, vectors
        without decay, as upstream's groups have it. Without a `muon_learning_rate` all get AdamW.
        """
        matrices = hidden_matrices(model) if muon_learning_rate is not None else {}
        groups: dict[tuple[int, int, bool], list[torch.nn.Parameter]] = defaultdict(list)
        for name, param in model.named_parameters():
            if param.requires_grad:
                num_matrices, outputs_dim = matrices.get(name, (0, 0))
                groups[num_matrices, outputs_dim, param.ndim > 1].append(param)
        described = []
        for (num_matrices, outputs_dim, decays), params in groups.items():
            described.append(
                {
                    "params": params,
                    "num_matrices": num_matrices,
                    "outputs_dim": outputs_dim,
                    "lr": muon_learning_rate if num_matrices else learning_rate,
                    "weight_decay": weight_decay if decays else 0.0,
                }
            )
        # Of `lr` it is upstream's schedules that read it: `min_lr` is a part of it.
        return MuonAdamW(
            described,
            lr=learning_rate,
            betas=betas,
            eps=eps,
            momentum=muon_momentum,
            cautious=cautious,
        )


def hidden_matrices(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """The trained weights of a model's inner linear layers and experts, by name: how many matrices
    each holds side by side along its outputs, and which dimension the outputs are.

    Raises InputError: experts whose matrices lie in a way that is not known.
    """
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if get_output else None
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        found |= _matrices_of_experts(name, module)
        is_linear = isinstance(module, torch.nn.Linear | Conv1D) and last not in ROUTERS
        if not is_linear or module is output or not module.weight.requires_grad:
            continue
        num_matrices = FUSED.get(last, 1)
        outputs_dim = 1 if isinstance(module, Conv1D) else 0
        found[f"{name}.weight"] = (num_matrices, outputs_dim)
    return found


def _matrices_of_experts(name: str, module: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """As `hidden_matrices`, of a module that holds the matrices of experts one behind another."""
    found: dict[str, tuple[int, int]] = {}
    if "experts" not in type(module).__name__.lower():
        return found
    for last, param in module.named_parameters(recurse=False):
        if param.ndim != 3 or not param.requires_grad:
            continue
        if last not in EXPERTS or getattr(module, "is_transposed", False):
            raise InputError(
                f"optimizer muon: how {name}.{last} holds the matrices of its experts is not "
                "known; use optimizer adamw"
            )
        found[f"{name}.{last}"] = (FUSED.get(last, 1), 0)
    return found


def choose_optimizer(
    args: OptimizerArguments, training_args: TrainingArguments, model: torch.nn.Module
) -> tuple[type[MuonForModel], dict[str, Any]] | None:
    """For Trainer's `optimizer_cls_and_kwargs`; None: what upstream's `optim` says.

    Raises InputError: see `check_optimizer`, or a model that trains no matrices.
    """
    check_optimizer(args, training_args)
    is_muon = args.optimizer == "muon"
    if not is_muon and not args.cautious_weight_decay:
        return None
    if is_muon and not hidden_matrices(model):
        raise InputError(
            "optimizer muon: this run trains no hidden matrix, only vectors or embeddings; leave "
            "it out"
        )
    return MuonForModel, {
        "muon_learning_rate": args.muon_learning_rate if is_muon else None,
        "muon_momentum": args.muon_momentum,
        "learning_rate": training_args.learning_rate,
        "weight_decay": training_args.weight_decay,
        "betas": (training_args.adam_beta1, training_args.adam_beta2),
        "eps": training_args.adam_epsilon,
        "cautious": args.cautious_weight_decay,
    }


def check_optimizer(args: OptimizerArguments, training_args: TrainingArguments) -> None:
    """Raise InputError where `optim` names another optimizer, an engine takes matrices apart, or
    there is no decay that could be cautious.
    """
    name = f"optimizer {args.optimizer}"
    if args.optimizer is None:
        if not args.cautious_weight_decay:
            return
        name = "cautious_weight_decay"
    if training_args.optim != TrainingArguments.optim:
        raise InputError(
            f"{name}: optim {OptimizerNames(training_args.optim).value} names another optimizer; "
            "leave one of the two out (--optimizer null, where a config names it)"
        )
    if args.cautious_weight_decay and not training_args.weight_decay:
        raise InputError("cautious_weight_decay: weight_decay is 0; set it, or leave this out")
    if not launched_engine().startswith("ZeRO"):
        return
    if args.optimizer == "muon":
        raise InputError(
            "optimizer muon: ZeRO cuts all weights into one flat row, in which there are no "
            "matrices; use --accelerate ddp or fsdp2, or optimizer adamw"
        )
    if args.cautious_weight_decay:
        raise InputError(
            "cautious_weight_decay: DeepSpeed takes optimizers that it knows alone; use "
            "--accelerate ddp or fsdp2, or leave it out"
        )
