"""What `import simfle` offers: pretrain, embed, load_backbone, evaluate. Commands call the same functions."""
