"""Labels: auditing those that there are (`instructrec_jax.audit`), and asking for more (`instructrec_jax.label`)."""
