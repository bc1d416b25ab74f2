# The images of a new cluster's pods that need some of a Debian system, one target each.
ARG SYSTEM
FROM $SYSTEM AS system
# What node/build removes when it is done.
LABEL dev.jetwright.unfinished=node
COPY collect /
# kube-proxy calls iptables, which loads its matches as libraries.
RUN /collect /for/kube-proxy /usr/sbin/xtables-nft-multi /usr/lib/*/xtables/*.so \
  && for family in iptables ip6tables; do for what in '' -save -restore; do \
    ln -s xtables-nft-multi "/for/kube-proxy/usr/sbin/$family$what"; done; done
# The provisioner of volumes makes and removes folders by a pod on their node.
RUN /collect /for/volume-helper /usr/bin/sh /usr/bin/mkdir /usr/bin/rm

FROM scratch AS kube-proxy
COPY --from=system /for/kube-proxy /
COPY kube-proxy /usr/local/bin/
ENV PATH=/usr/local/bin:/usr/sbin

FROM scratch AS volume-helper
COPY --from=system /for/volume-helper /
ENV PATH=/usr/bin
