"""Sources of faces: folders, lists, archives, corpora, synthetic faces."""
