//! A stand-in for containerd.
