"""Classifiers with the interface of scikit-learn, which must be installed to import them; rooms re-export them."""
