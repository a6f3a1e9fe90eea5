//! Models, generation, objectives and optimisation: everything that touches a tensor.
//!
//! From the file to the trained weights, in the order of the data:
//!
//! - [`checkpoint`] (with [`config`], [`tokenizer`], [`chat`]): a model read from a Hugging Face
//!   directory or a GGUF file, and written back;
//! - [`device`] (with [`cuda`]): where tensors live and in which precision they are computed;
//! - [`model`]: the one decoder; attention is handed to it, so that training and decoding share it;
//! - [`generate`] (with [`cache`], [`sampling`]): batched generation with a KV cache, sampled on the
//!   host;
//! - [`written`]: conversations as tokens that carry loss or do not;
//! - [`forest`]: prompts with their responses packed on one flat token axis;
//! - [`head`]: token statistics and their gradient, chunk by chunk, without the batch's logits;
//! - [`objective`]: algorithms as pure functions of token statistics, one file each;
//! - [`kernels`]: the operators of a layer and of the head, in C++, with their backward;
//! - [`pass`]: a forward pass that can be gone back through;
//! - [`lora`]: low-rank adapters on frozen weights;
//! - [`optim`]: AdamW, clipping, schedules;
//! - [`average`]: weighted means of models;
//! - [`trainer`]: one training step through all of these;
//! - [`reward_model`]: a decoder under a scalar head: how it begins, the text it reads, its scores;
//! - [`teacher`]: a model of the same vocabulary that the policy is compared with;
//! - [`scoring`]: what a frozen model says of given responses;
//! - [`embedding`]: texts as vectors;
//! - [`snapshot`]: immutable versioned weights, by which the trainer's reach the generators;
//! - [`weights`]: tensors by name;
//! - [`allocator`]: large blocks of memory stay ours;
//! - [`error`]: what can go wrong, in words for the person who can mend it.
//!
//! This is the only crate that names tch.

pub mod allocator;
pub mod average;
pub mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod cuda;
pub mod device;
pub mod embedding;
pub mod error;
pub mod forest;
pub mod generate;
pub mod head;
pub mod kernels;
pub mod lora;
pub mod model;
pub mod objective;
pub mod optim;
pub mod pass;
pub mod reward_model;
pub mod sampling;
pub mod scoring;
pub mod snapshot;
pub mod teacher;
pub mod tokenizer;
pub mod trainer;
pub mod weights;
pub mod written;

pub use error::{PolicyError, Result};
