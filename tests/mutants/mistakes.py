"""Forty small mistakes in the core, one line each, and the fast tests that must notice them.

`make mutants` makes them one by one in a copy of the sources and fails where the named tests still pass.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake.

    Attributes:
        name: what is wrong, in a few words; unique.
        file: the source, below src/equirelax.
        old: text that stands in it once. new: what is put in its place.
        tests: files or folders, as paths in the repository, whose fast tests notice it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    # symmetry
    Mutant(
        "rotations turn the wrong way",
        "symmetry/finite.py",
        "torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)",
        "torch.stack([torch.stack([c, s], dim=-1), torch.stack([-s, c], dim=-1)], dim=-2)",
        "tests/symmetry/test_groups.py",
    ),
    Mutant(
        "generators of SO(3) with the wrong sign about y",
        "symmetry/lie.py",
        "pairs = [(1, 2), (2, 0), (0, 1)]",
        "pairs = [(1, 2), (0, 2), (0, 1)]",
        "tests/symmetry/test_groups.py",
    ),
    Mutant(
        "a representation acts by its transpose",
        "symmetry/representation.py",
        "part = part @ block.matrix(g).to(x).reshape(*lift, block.dim, block.dim).mT",
        "part = part @ block.matrix(g).to(x).reshape(*lift, block.dim, block.dim)",
        "tests/symmetry/test_representations.py",
    ),
    Mutant(
        "translations are lost in the derivative of positions",
        "symmetry/representation.py",
        "part = part + offsets.repeat(1, multiplicity).unsqueeze(1)",
        "part = part",
        "tests/symmetry/test_representations.py",
    ),
    Mutant(
        "invariant features are returned without a copy",
        "symmetry/representation.py",
        "            return x.clone()\n        if not x.is_floating_point():",
        "            return x\n        if not x.is_floating_point():",
        "tests/symmetry/test_representations.py",
    ),
    Mutant(
        "SO(n) is sampled with reflections",
        "symmetry/group.py",
        "flip[:, 0] = torch.where(torch.linalg.det(q) < 0, -1.0, 1.0)",
        "flip[:, 0] = torch.where(torch.linalg.det(q) < 0, 1.0, 1.0)",
        "tests/symmetry/test_groups.py",
    ),
    Mutant(
        "equivariant maps of the transposed representation",
        "symmetry/intertwiners.py",
        "torch.kron(eye_out, a.mT.contiguous())",
        "torch.kron(eye_out, a.contiguous())",
        "tests/symmetry/test_intertwiners.py",
    ),
    Mutant(
        "the projection mixes channels the wrong way round",
        "symmetry/intertwiners.py",
        'torch.einsum("...voui,boi->...vub", copies, basis)',
        'torch.einsum("...voui,boi->...vub", copies.transpose(-4, -2).reshape(copies.shape), basis)',
        "tests/symmetry/test_intertwiners.py",
    ),
    # relaxation
    Mutant(
        "gamma is dropped",
        "relaxation/residual.py",
        "return self.map(x, self.gamma)",
        "return self.map(x, None)",
        "lab/tests/relaxation/test_relax.py",
    ),
    Mutant(
        "gamma scales the weight and not the bias",
        "relaxation/kinds/kind.py",
        "None if bias is None else scale * bias",
        "None if bias is None else bias",
        "tests/relaxation/kinds/test_kind_dense.py",
    ),
    Mutant(
        "a batch from outside is kept without a clone",
        "relaxation/kept.py",
        "found = _COPIES[key] = _Part(source.clone(), source)",
        "found = _COPIES[key] = _Part(source, source)",
        "tests/relaxation/test_kept.py",
    ),
    Mutant(
        "inputs are kept in evaluation too",
        "relaxation/residual.py",
        "if not (self.keep_inputs and torch.is_grad_enabled() and self._trains()):",
        "if not (self.keep_inputs and torch.is_grad_enabled()):",
        "tests/relaxation/regularizers/test_lie_derivative.py",
    ),
    Mutant(
        "inputs are kept after they were taken",
        "relaxation/residual.py",
        "kept, self._kept = self._kept, []",
        "kept = list(self._kept)",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    Mutant(
        "gamma keeps its gradient when it is fixed",
        "relaxation/residual.py",
        "        self.gamma.grad = None\n",
        "",
        "tests/methods/test_method_schedules.py",
    ),
    Mutant(
        "copies carry the last batch",
        "relaxation/residual.py",
        '"_kept": [], "keep_inputs": False',
        '"keep_inputs": False',
        "lab/tests/relaxation/test_relax.py",
    ),
    Mutant(
        "a delta is added without a cast to the output's dtype",
        "relaxation/sites.py",
        "return output + delta.to(output.dtype)",
        "return output + delta",
        "lab/tests/relaxation/test_maps.py",
    ),
    Mutant(
        "folding forgets gamma",
        "relaxation/projected.py",
        "return gamma * weight, None if bias is None else gamma * bias",
        "return weight, None if bias is None else gamma * bias",
        "tests/relaxation/test_fold.py",
    ),
    Mutant(
        "a fold into channels takes the sum for the mean",
        "relaxation/layers/channels.py",
        "mean = total / sum(sizes)",
        "mean = total",
        "lab/tests/relaxation/test_vn_relaxed.py lab/tests/relaxation/test_families.py",
    ),
    Mutant(
        "e3nn's weights are folded untransposed",
        "relaxation/layers/e3nn.py",
        "amount[where] = (mean.T / instruction.path_weight).reshape(-1)",
        "amount[where] = (mean / instruction.path_weight).reshape(-1)",
        "lab/tests/relaxation/test_families.py",
    ),
    Mutant(
        "residuals stay in training mode",
        "relaxation/attach.py",
        "residual.train(module.training)",
        "residual.train()",
        "lab/tests/relaxation/test_maps.py",
    ),
    Mutant(
        "the part that points share is the mean over samples",
        "relaxation/columns.py",
        "self.common[..., None].expand(-1, -1, self.own.shape[2])",
        "self.common.mean(0, keepdim=True)[..., None].expand(self.own.shape[0], -1, self.own.shape[2])",
        "lab/tests/relaxation/test_low_rank.py",
    ),
    # regularizers
    Mutant(
        "the commutator becomes an anticommutator",
        "relaxation/terms/linear.py",
        "difference = outputs[:, :, :-1] - there[:, :, :-1]",
        "difference = outputs[:, :, :-1] + there[:, :, :-1]",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    Mutant(
        "the gradient misses the output's part",
        "relaxation/terms/linear.py",
        "factors = torch.cat([difference, -_adjoint(difference, out_rep, k, c)], dim=2)",
        "factors = torch.cat([difference, 0 * _adjoint(difference, out_rep, k, c)], dim=2)",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    Mutant(
        "the gradient of the Gram form has one sign wrong",
        "relaxation/terms/linear.py",
        "gradient -= out_rep.left_transposed(products[:k].reshape(k, out_dim, -1)).view_as(weights)",
        "gradient += out_rep.left_transposed(products[:k].reshape(k, out_dim, -1)).view_as(weights)",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    Mutant(
        "second derivatives are forgotten",
        "relaxation/terms/linear.py",
        "if torch.is_grad_enabled():\n        lie, norm = Images.apply(weights, ctx.operators)",
        "if False:\n        lie, norm = Images.apply(weights, ctx.operators)",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    Mutant(
        "half of the derivative",
        "relaxation/terms/linear.py",
        "return 2 * (lie_grad * lie + norm_grad * norm)",
        "return lie_grad * lie + norm_grad * norm",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    Mutant(
        "the discrete elements are left out for what is not linear",
        "relaxation/terms/jacobian.py",
        "for g in in_rep.group.discrete(x.dtype, x.device):",
        "for g in in_rep.group.discrete(x.dtype, x.device)[:0]:",
        "tests/relaxation/regularizers/test_lie_derivative.py",
    ),
    Mutant(
        "the shared moment forgets the number of points",
        "relaxation/terms/linear.py",
        "rows.append(x.own.shape[2] ** 0.5 * torch.cat([mean, x.common], dim=1))",
        "rows.append(torch.cat([mean, x.common], dim=1))",
        "lab/tests/relaxation/test_low_rank.py",
    ),
    Mutant(
        "sampled rows are not scaled up",
        "relaxation/regularizers/lie_derivative.py",
        "count / rows",
        "1.0",
        "tests/relaxation/regularizers/test_lie_derivative.py",
    ),
    Mutant(
        "the root's gradient is infinite at zero",
        "relaxation/regularizers/regularizer.py",
        "positive, torch.where(positive, total, torch.ones_like(total)).sqrt(), torch.zeros_like(total)",
        "positive, total.sqrt(), torch.zeros_like(total)",
        "tests/relaxation/regularizers/test_double_backward.py",
    ),
    # methods
    Mutant(
        "the schedule ends one step too late",
        "methods/scheduled.py",
        "done, last = step, self.total_steps - 1",
        "done, last = step, self.total_steps",
        "tests/methods/test_method_schedules.py",
    ),
    Mutant(
        "the triangle turns at a quarter",
        "methods/schedules.py",
        "return 2.0 * progress if progress <= 0.5 else 2.0 * (1.0 - progress)",
        "return 2.0 * progress if progress <= 0.25 else 2.0 * (1.0 - progress)",
        "tests/methods/test_method_schedules.py",
    ),
    Mutant(
        "multipliers descend",
        "methods/dual.py",
        "torch.optim.SGD([multipliers], lr=self.lr, maximize=True)",
        "torch.optim.SGD([multipliers], lr=self.lr)",
        "tests/methods/test_lagrangian_cooper.py",
    ),
    Mutant(
        "a saved Adam of the multipliers begins to count anew",
        "methods/dual.py",
        'torch.tensor(float(state["count"]))',
        "torch.tensor(0.0)",
        "tests/methods/test_dual.py",
    ),
    Mutant(
        "the sum of constraints becomes a mean",
        "methods/lagrangian.py",
        'return terms.sum() if self.settings.reduction == "sum" else terms.mean()',
        "return terms.mean()",
        "tests/methods/test_lagrangian_cooper.py",
    ),
    Mutant(
        "multipliers of inequalities may be negative",
        "methods/resilient.py",
        "self.multipliers.clamp_(min=0.0)",
        "pass",
        "tests/methods/test_lagrangian_cooper.py",
    ),
    Mutant(
        "slacks have no price",
        "methods/resilient.py",
        "self.slacks.sub_(self.primal_lr * (self.settings.rho * self.slacks - force))",
        "self.slacks.sub_(self.primal_lr * (self.slacks - force))",
        "tests/methods/test_lagrangian_cooper.py",
    ),
    # auditing
    Mutant(
        "errors are relative to the smaller norm",
        "auditing/norms.py",
        "bottom = max(float(a.norm()), float(b.norm())) if scale is None else scale / size",
        "bottom = min(float(a.norm()), float(b.norm())) if scale is None else scale / size",
        "tests/auditing/test_audit.py",
    ),
    Mutant(
        "E takes norms before the mean over elements",
        "auditing/remul.py",
        "drift += gap / len(elements)",
        "drift += gap.abs() / len(elements)",
        "tests/auditing/test_label_free.py",
    ),
    Mutant(
        "gradients are not given back after an audit",
        "auditing/state.py",
        "                tensor.grad = gradient\n",
        "",
        "lab/tests/auditing/test_state.py",
    ),
)
