"""The audit: walks any selector through the stages and writes down what it did to the future."""
