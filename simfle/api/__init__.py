"""Public functions of `import simfle`: pretrain, embed, load_backbone, evaluate. Commands call the same functions."""
