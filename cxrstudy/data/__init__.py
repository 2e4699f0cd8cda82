"""Data sets: vocabulary, manifests, cards, DICOM, images, and the synthetic institution."""
