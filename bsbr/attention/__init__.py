"""The mathematics of each mechanism: pure functions on tensors of shape (batch, heads, n, head_dim).

One module a mechanism, each with the same names:

`reference`  the defining formula, slow and obviously right;
`attend`     the fast form over a whole sequence, differentiable, the one that models use;
`prefill`    `attend`, and the decoding state after each row's last real token;
`step`       one more token from a state, whose tensors it may overwrite: use the state it returns;
`State`      a NamedTuple of tensors, batch first;
`operations` how many floating-point operations `attend` and its gradients take, from the sizes alone.

All but `State` take a mechanism's options by the same keywords.

All are causal: output t depends on tokens ≤ t only. Rows of different lengths stand packed to the left (real tokens
first), so that causality keeps padding out of the outputs; `prefill` is told the `lengths` to keep it out of the state.
"""
