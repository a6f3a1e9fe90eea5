//! The schedule driven without actors: `world` answers its commands as actors would, in any order.

mod endings;
mod orders;
mod world;
