"""The methods that PMC is compared with, and fine-tuning: one file each.

With y the answer to a forget question q, N(y) = −log p_θ(y | q) summed over the answer's |y|
loss tokens (end token included), N_ref(y) the same under the frozen target model, f and r the
token means of the NLL over forget answers and over retain answers, and σ the logistic function.
"""
