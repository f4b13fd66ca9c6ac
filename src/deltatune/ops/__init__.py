"""Pure tensor functions shared by methods and engine."""
