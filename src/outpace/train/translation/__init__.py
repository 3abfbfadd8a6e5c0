"""Training on sentence pairs: any network, several criteria, distillation in two ways, looks at held-out text."""
