"""Placement: which engine a request goes to. Policies are pure; `registry` names them."""
