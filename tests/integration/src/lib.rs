//! What several groups of the tests share.

#![expect(clippy::expect_used, reason = "a step that fails is a test that fails")]

pub mod built;
pub mod gate;
pub mod workspace;
