from instructrec_jax.preparation import films as films  # registers itself with preparation.demos
