//! What is stored: round trips, damage, hostile bytes, and golden files that every later version must read.

mod catalog;
mod damage;
mod golden;
mod hostile;
mod kit;
mod pages;
mod read_frame;
mod round_trip;
