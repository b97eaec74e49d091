#include "mikv/mikv.hpp"
int main() { return mikv::Spec::parse("mikv").ok() ? 0 : 1; }
