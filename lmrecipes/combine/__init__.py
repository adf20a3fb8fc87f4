"""Several finished runs made one: averaged and stacked predictions, averaged weights, distillation."""
