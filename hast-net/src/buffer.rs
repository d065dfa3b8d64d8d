//! Aligned, pooled, reference-counted payload memory.
